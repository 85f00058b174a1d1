//! Axes: where a value lies, where the ticks go, how a number is written.

/// How the values of an axis are spread over its length.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Linear,
    Log,
}

/// An axis before it has seen the values.
#[derive(Clone, Debug)]
pub struct Axis {
    pub(super) label: String,
    scale: Scale,
    percent: bool,
    whole: bool,
    include: Vec<f64>,
}

impl Axis {
    /// A linear axis; the label names the quantity and its unit.
    pub fn linear(label: impl Into<String>) -> Self {
        let label = label.into();
        Axis {
            label,
            scale: Scale::Linear,
            percent: false,
            whole: false,
            include: Vec::new(),
        }
    }

    /// A logarithmic axis; values that are not positive have no place on it.
    pub fn log(label: impl Into<String>) -> Self {
        Axis {
            scale: Scale::Log,
            ..Axis::linear(label)
        }
    }

    /// Writes fractions as percentages.
    pub fn percent(self) -> Self {
        Axis {
            percent: true,
            ..self
        }
    }

    /// Has ticks at whole numbers only, as epochs want.
    pub fn whole(self) -> Self {
        Axis {
            whole: true,
            ..self
        }
    }

    /// Shows this value whatever the data are, such as the zero that bars grow from.
    pub fn include(mut self, value: f64) -> Self {
        self.include.push(value);
        self
    }

    /// A value with three significant digits and its unit, for labels.
    pub fn value(&self, value: f64) -> String {
        if self.percent {
            format!("{:.1} %", value * 100.0)
        } else {
            number(value)
        }
    }

    /// Lays the axis from pixel `start` to pixel `end` over these values, with `pad` of the range
    /// left free at both ends. None where no value has a place.
    pub(super) fn fit(
        &self,
        values: impl IntoIterator<Item = f64>,
        (start, end): (f64, f64),
        pad: f64,
    ) -> Option<Fitted> {
        let places = values
            .into_iter()
            .chain(self.include.iter().copied())
            .map(|v| self.place(v));
        let places: Vec<f64> = places.filter(|p| p.is_finite()).collect();
        let low = places.iter().copied().reduce(f64::min)?;
        let high = places.iter().copied().reduce(f64::max)?;
        // Beyond an included value nothing lies, so nothing is left free there either.
        let wall = |end: f64| self.include.iter().any(|&value| self.place(value) == end);
        let free = |end: f64, room: f64| if wall(end) { 0.0 } else { room };
        let (low, high) = if high - low > 1e-9 * high.abs().max(1e-9) {
            let room = (high - low) * pad;
            (low - free(low, room), high + free(high, room))
        } else {
            // One value only: any range around it shows it.
            let half = if self.whole {
                1.0
            } else {
                (low.abs() * 0.1).max(0.05)
            };
            (low - free(low, half), high + half)
        };
        Some(Fitted {
            axis: self.clone(),
            low,
            high,
            start,
            end,
        })
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => f64::NAN,
        }
    }
}

/// An axis laid over its pixels.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    axis: Axis,
    low: f64,
    high: f64,
    pub(super) start: f64,
    pub(super) end: f64,
}

impl Fitted {
    /// The pixel of a value; None where it has no place (not finite, or not positive on a
    /// logarithmic axis).
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        let place = self.axis.place(value);
        let share = (place - self.low) / (self.high - self.low);
        share
            .is_finite()
            .then_some(self.start + share * (self.end - self.start))
    }

    /// The ticks: pixel and text, about one every `apart` pixels.
    pub(super) fn ticks(&self, apart: f64) -> Vec<(f64, String)> {
        let wanted = ((self.end - self.start).abs() / apart).max(2.0);
        let values = match self.axis.scale {
            Scale::Linear => self.linear_ticks(wanted),
            Scale::Log => self.log_ticks(wanted),
        };
        let place = |(value, text)| self.at(value).map(|pixel| (pixel, text));
        values.into_iter().filter_map(place).collect()
    }

    fn linear_ticks(&self, wanted: f64) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / wanted;
        let decade = 10f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * decade);
        let step = nice
            .into_iter()
            .find(|&n| n >= rough)
            .unwrap_or(10.0 * decade);
        let step = if self.axis.whole {
            step.max(1.0).round()
        } else {
            step
        };
        let shown = if self.axis.percent {
            step * 100.0
        } else {
            step
        };
        let decimals = (-(shown * 1.000_001).log10().floor()).max(0.0) as usize;
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        let text = |value: f64| match self.axis.percent {
            true => format!("{:.decimals$} %", value * 100.0),
            false => minus(format!("{value:.decimals$}")),
        };
        (first..=last)
            .map(|i| i as f64 * step)
            .map(|value| (value, text(value)))
            .collect()
    }

    fn log_ticks(&self, wanted: f64) -> Vec<(f64, String)> {
        let every = ((self.high - self.low) / wanted).ceil().max(1.0) as i32;
        let within = |digits: &[f64]| -> Vec<f64> {
            (self.low.floor() as i32..=self.high.ceil() as i32)
                .filter(|decade| decade % every == 0)
                .flat_map(|decade| digits.iter().map(move |n| n * 10f64.powi(decade)))
                .filter(|value| (self.low - 1e-9..=self.high + 1e-9).contains(&value.log10()))
                .collect()
        };
        // The most digits to a decade that there is room for; all of them within one decade.
        let sets: [&[f64]; 3] = [&[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 5.0], &[1.0]];
        let values = match within(sets[0]) {
            few if few.len() < 3 => within(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
            _ => {
                let fits = |digits: &&&[f64]| within(digits).len() as f64 <= wanted;
                within(sets.iter().find(fits).unwrap_or(&sets[2]))
            }
        };
        values
            .into_iter()
            .map(|value| (value, self.axis.log_text(value)))
            .collect()
    }
}

impl Axis {
    fn log_text(&self, value: f64) -> String {
        if self.percent {
            format!("{} %", number(value * 100.0))
        } else {
            number(value)
        }
    }
}

/// A number with three significant digits, as a person writes it: 0.0123, 4.56, 1,230.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    if !(1e-4..1e6).contains(&size) {
        let power = size.log10().floor() as i32;
        let lead = value / 10f64.powi(power);
        let lead = trim(format!("{lead:.2}"));
        let power: String = power.to_string().chars().map(superscript).collect();
        return minus(if lead == "1" {
            format!("10{power}")
        } else {
            format!("{lead}·10{power}")
        });
    }
    let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.decimals$}");
    minus(if decimals == 0 {
        thousands(&text)
    } else {
        trim(text)
    })
}

fn trim(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn thousands(text: &str) -> String {
    let digits = text.trim_start_matches('-');
    let mut out = String::from(if text.len() > digits.len() { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn superscript(c: char) -> char {
    match c {
        '-' => '⁻',
        '0' => '⁰',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '4' => '⁴',
        '5' => '⁵',
        '6' => '⁶',
        '7' => '⁷',
        '8' => '⁸',
        '9' => '⁹',
        other => other,
    }
}

fn minus(text: String) -> String {
    text.replacen('-', "−", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_written_by_hand() {
        let written = |values: &[f64]| values.iter().map(|&v| number(v)).collect::<Vec<_>>();
        assert_eq!(
            written(&[
                0.0,
                0.0123,
                -4.56,
                10.0,
                1234.0,
                65536.0,
                1e-6,
                2.5e-7,
                f64::NAN
            ]),
            [
                "0",
                "0.0123",
                "−4.56",
                "10",
                "1,234",
                "65,536",
                "10⁻⁶",
                "2.5·10⁻⁷",
                "–"
            ]
        );
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear("x")
            .fit([0.0, 1.0], (0.0, 300.0), 0.0)
            .unwrap();
        let texts: Vec<_> = axis.ticks(60.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);

        let axis = Axis::linear("x")
            .percent()
            .fit([0.801, 0.842], (0.0, 300.0), 0.0)
            .unwrap();
        let texts: Vec<_> = axis.ticks(60.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["81 %", "82 %", "83 %", "84 %"]);

        let axis = Axis::log("x")
            .fit([1.0, 1024.0], (0.0, 300.0), 0.0)
            .unwrap();
        let texts: Vec<_> = axis.ticks(80.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["1", "10", "100", "1,000"]);

        let axis = Axis::log("x")
            .fit([0.0008, 0.0038], (0.0, 300.0), 0.0)
            .unwrap();
        let texts: Vec<_> = axis.ticks(60.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["0.001", "0.002", "0.003"]);
    }

    #[test]
    fn epochs_never_tick_between_whole_numbers() {
        let axis = Axis::linear("epoch")
            .whole()
            .fit([1.0, 2.0], (0.0, 400.0), 0.0)
            .unwrap();
        let texts: Vec<_> = axis.ticks(40.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["1", "2"]);
    }

    #[test]
    fn values_without_a_place_are_left_out() {
        assert!(Axis::linear("x").fit([f64::NAN], (0.0, 1.0), 0.0).is_none());
        assert!(Axis::log("x").fit([0.0, -1.0], (0.0, 1.0), 0.0).is_none());
        let axis = Axis::log("x")
            .fit([0.0, 1.0, 10.0], (0.0, 100.0), 0.0)
            .unwrap();
        assert_eq!(axis.at(10.0), Some(100.0));
        assert_eq!(axis.at(0.0), None);
    }

    #[test]
    fn one_value_still_makes_an_axis() {
        let axis = Axis::linear("x").fit([3.0], (0.0, 100.0), 0.05).unwrap();
        assert_eq!(axis.at(3.0), Some(50.0));
    }
}
