//! Lines over an axis, each with its name at its end.

use super::axis::{Axis, Fitted};
use super::{Colour, Picture, Px};
use maud::{Markup, html};

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 58.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 46.0;
/// Room on the right for the names of the lines, or for the bar of the ramp.
const NAMES: f64 = 150.0;
const BAR: f64 = 62.0;
/// Up to so many points carry a dot and the text that shows when one points at it.
const DOTS: usize = 130;

/// A line; a point that is not finite leaves a gap.
#[derive(Clone, Debug)]
pub struct Line {
    /// Written at the end of the line, with the last value; empty for the lines of a ramp.
    pub name: String,
    /// The points, by ascending x.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub colour: Colour,
}

/// The room between two curves, filled; an area of one point is drawn as an upright line.
#[derive(Clone, Debug)]
pub struct Area {
    /// (x, lower y, upper y), by ascending x.
    pub points: Vec<(f64, f64, f64)>,
    /// Its colour.
    pub colour: Colour,
}

/// A dashed line across, for a value that does not change with x.
#[derive(Clone, Debug)]
pub struct Level {
    /// Written at its end, with the value.
    pub name: String,
    /// Where it lies.
    pub value: f64,
}

/// A picture of lines.
#[derive(Clone, Debug)]
pub struct Lines {
    title: String,
    x: Axis,
    y: Axis,
    lines: Vec<Line>,
    areas: Vec<Area>,
    levels: Vec<Level>,
    shade: Option<(f64, f64, String)>,
    ramp: Option<(String, String)>,
}

impl Lines {
    /// An empty picture.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        let title = title.into();
        let (lines, areas, levels) = (Vec::new(), Vec::new(), Vec::new());
        Lines {
            title,
            x,
            y,
            lines,
            areas,
            levels,
            shade: None,
            ramp: None,
        }
    }

    /// Adds a line.
    pub fn line(mut self, name: &str, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        self.lines.push(Line {
            name: name.into(),
            points,
            colour,
        });
        self
    }

    /// Adds a filled area behind the lines.
    pub fn area(mut self, colour: Colour, points: Vec<(f64, f64, f64)>) -> Self {
        self.areas.push(Area { points, colour });
        self
    }

    /// Adds a dashed line across.
    pub fn level(mut self, name: &str, value: f64) -> Self {
        self.levels.push(Level {
            name: name.into(),
            value,
        });
        self
    }

    /// Shades the picture from one x to another and names the stretch.
    pub fn shade(mut self, from: f64, to: f64, name: &str) -> Self {
        self.shade = Some((from, to, name.into()));
        self
    }

    /// Shows the bar of the ramp, with what its early and its late end stand for.
    pub fn ramp(mut self, early: &str, late: &str) -> Self {
        self.ramp = Some((early.into(), late.into()));
        self
    }

    /// Draws it; None where there is nothing to draw.
    pub fn draw(&self) -> Option<Picture> {
        let right = WIDTH - if self.ramp.is_some() { BAR } else { NAMES };
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let areas = || self.areas.iter().flat_map(|area| &area.points);
        // A point counts when both of its coordinates have a place.
        let finite = |x: f64, y: f64| x.is_finite() && y.is_finite();
        if !points().any(|p| finite(p.0, p.1)) && areas().next().is_none() {
            return None;
        }
        let xs = points().filter(|p| finite(p.0, p.1)).map(|p| p.0);
        let ys = points().filter(|p| finite(p.0, p.1)).map(|p| p.1);
        let x = self
            .x
            .fit(xs.chain(areas().map(|p| p.0)), (LEFT, right), 0.0)?;
        let levels = self.levels.iter().map(|level| level.value);
        let ys = ys.chain(areas().flat_map(|p| [p.1, p.2])).chain(levels);
        let y = self.y.fit(ys, (BOTTOM, TOP), 0.05)?;

        let body = html! {
            (self.draw_shade(&x))
            (self.draw_axes(&x, &y))
            @for area in &self.areas { (draw_area(area, &x, &y)) }
            @for level in &self.levels {
                @if let Some(at) = y.at(level.value) {
                    line class="level" x1=(Px(LEFT)) x2=(Px(right)) y1=(Px(at)) y2=(Px(at)) {}
                }
            }
            @for line in &self.lines { (self.draw_line(line, &x, &y)) }
            @match &self.ramp {
                Some((early, late)) => (draw_ramp(right, early, late)),
                None => (self.draw_names(right, &y)),
            }
        };
        Some(Picture {
            title: self.title.clone(),
            width: WIDTH,
            height: HEIGHT,
            body,
        })
    }

    fn draw_shade(&self, x: &Fitted) -> Markup {
        let span = self.shade.as_ref().and_then(|(from, to, name)| {
            let inside = |pixel: f64| pixel.clamp(x.start, x.end);
            let (from, to) = (inside(x.at(*from)?), inside(x.at(*to)?));
            (to - from > 1.0).then_some((from, to, name))
        });
        html! {
            @if let Some((from, to, name)) = span {
                rect class="shade" x=(Px(from)) width=(Px(to - from))
                    y=(Px(TOP)) height=(Px(BOTTOM - TOP)) {}
                text class="tick" x=(Px(from)) y=(Px(TOP - 6.0)) { (name) }
            }
        }
    }

    fn draw_axes(&self, x: &Fitted, y: &Fitted) -> Markup {
        html! {
            @for (at, text) in y.ticks(48.0) {
                line class="grid" x1=(Px(LEFT)) x2=(Px(x.end)) y1=(Px(at)) y2=(Px(at)) {}
                text class="tick end" x=(Px(LEFT - 8.0)) y=(Px(at + 4.0)) { (text) }
            }
            line class="axis" x1=(Px(LEFT)) x2=(Px(x.end)) y1=(Px(BOTTOM)) y2=(Px(BOTTOM)) {}
            @for (at, text) in x.ticks(64.0) {
                line class="axis" x1=(Px(at)) x2=(Px(at)) y1=(Px(BOTTOM)) y2=(Px(BOTTOM + 4.0)) {}
                text class="tick middle" x=(Px(at)) y=(Px(BOTTOM + 19.0)) { (text) }
            }
            text class="label" x="4" y="16" { (self.y.label) }
            text class="label middle" x=(Px((LEFT + x.end) / 2.0)) y=(Px(HEIGHT - 8.0)) {
                (self.x.label)
            }
        }
    }

    fn draw_line(&self, line: &Line, x: &Fitted, y: &Fitted) -> Markup {
        let colour = line.colour.class();
        let place = |&(a, b): &(f64, f64)| Some((a, b, x.at(a)?, y.at(b)?));
        let stretches: Vec<Vec<_>> = line
            .points
            .split(|point| place(point).is_none())
            .map(|stretch| stretch.iter().filter_map(place).collect())
            .collect();
        let dots = self.ramp.is_none() && line.points.len() <= DOTS;
        html! {
            g class=(colour) {
                @for stretch in stretches.iter().filter(|stretch| stretch.len() > 1) {
                    polyline class="line" points=(points(stretch.iter().map(|p| (p.2, p.3)))) {}
                }
                @for &(a, b, px, py) in stretches.iter().flatten().filter(|_| dots) {
                    // A point between two gaps has no line to show it.
                    @let alone = stretches.iter().any(|s| s.len() == 1 && s[0].0 == a);
                    circle class=(if alone || line.points.len() <= 24 { "dot" } else { "touch" })
                        cx=(Px(px)) cy=(Px(py)) r=(if alone { 4 } else { 3 }) {
                        title {
                            (line.name) ", " (self.x.label) " " (self.x.value(a)) ": "
                            (self.y.value(b))
                        }
                    }
                }
            }
        }
    }

    fn draw_names(&self, right: f64, y: &Fitted) -> Markup {
        let last = |line: &Line| {
            line.points
                .iter()
                .rev()
                .find(|p| y.at(p.1).is_some())
                .copied()
        };
        let mut names: Vec<(f64, String, &str, f64)> = Vec::new();
        for line in &self.lines {
            if let Some((at, value)) = last(line).and_then(|(_, v)| Some((y.at(v)?, v))) {
                names.push((at, line.colour.class(), &line.name, value));
            }
        }
        for level in &self.levels {
            if let Some(at) = y.at(level.value) {
                names.push((at, "c0".into(), &level.name, level.value));
            }
        }
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let spots = spread(&names.iter().map(|n| n.0).collect::<Vec<_>>(), 34.0);
        html! {
            @for ((at, colour, name, value), spot) in names.iter().zip(spots) {
                g class=(colour) {
                    polyline class="leader" points={
                        (points([(right + 2.0, *at), (right + 10.0, spot), (right + 18.0, spot)]
                            .into_iter()))
                    } {}
                }
                text class="name" x=(Px(right + 23.0)) y=(Px(spot - 2.0)) { (name) }
                text class="number" x=(Px(right + 23.0)) y=(Px(spot + 13.0)) {
                    (self.y.value(*value))
                }
            }
        }
    }
}

fn draw_area(area: &Area, x: &Fitted, y: &Fitted) -> Markup {
    let place = |&(a, low, high): &(f64, f64, f64)| Some((x.at(a)?, y.at(low)?, y.at(high)?));
    let placed: Vec<_> = area.points.iter().filter_map(place).collect();
    let upper = placed.iter().map(|p| (p.0, p.2));
    let lower = placed.iter().rev().map(|p| (p.0, p.1));
    html! {
        g class=(area.colour.class()) {
            @match placed[..] {
                [(at, low, high)] => {
                    line class="upright" x1=(Px(at)) x2=(Px(at)) y1=(Px(low)) y2=(Px(high)) {}
                }
                _ => polygon class="area" points=(points(upper.chain(lower))) {}
            }
        }
    }
}

fn draw_ramp(right: f64, early: &str, late: &str) -> Markup {
    let (top, height) = (TOP + 24.0, 14.0);
    let at = right + 14.0;
    let bottom = top + height * Colour::RAMP as f64;
    html! {
        @for step in 0..Colour::RAMP {
            g class={ "r" (step) } {
                rect class="step" x=(Px(at)) width="12" height=(Px(height - 1.0))
                    y=(Px(bottom - height * (step + 1) as f64)) {}
            }
        }
        text class="tick middle" x=(Px(at + 6.0)) y=(Px(top - 8.0)) { (late) }
        text class="tick middle" x=(Px(at + 6.0)) y=(Px(bottom + 15.0)) { (early) }
    }
}

fn points(points: impl Iterator<Item = (f64, f64)>) -> String {
    use maud::Render;
    let mut out = String::new();
    for (x, y) in points {
        if !out.is_empty() {
            out.push(' ');
        }
        Px(x).render_to(&mut out);
        out.push(',');
        Px(y).render_to(&mut out);
    }
    out
}

/// Moves ascending places apart until neighbours are `gap` apart, each group about its own middle.
fn spread(places: &[f64], gap: f64) -> Vec<f64> {
    // Groups of (sum of the wanted first places, count): a group that overlaps the one before
    // joins it.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    let first = |(sum, count): (f64, usize)| {
        (sum / count as f64).clamp(
            TOP + 4.0,
            (BOTTOM + 30.0 - gap * count as f64).max(TOP + 4.0),
        )
    };
    for &place in places {
        let mut group = (place, 1);
        while let Some(&before) = groups.last() {
            if first(before) + gap * before.1 as f64 <= first(group) {
                break;
            }
            groups.pop();
            // The members of the later group start `before.1` gaps further down.
            group = (
                before.0 + group.0 - gap * (before.1 * group.1) as f64,
                before.1 + group.1,
            );
        }
        groups.push(group);
    }
    let of_group = |group: (f64, usize)| (0..group.1).map(move |i| first(group) + gap * i as f64);
    groups.into_iter().flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Lines {
        Lines::new(
            "A <title>",
            Axis::linear("epoch").whole(),
            Axis::linear("loss"),
        )
    }

    #[test]
    fn nothing_to_draw_is_none() {
        assert!(picture().draw().is_none());
        assert!(picture().level("a", 1.0).draw().is_none());
        assert!(
            picture()
                .line("a", Colour::First, vec![(1.0, f64::NAN)])
                .draw()
                .is_none()
        );
    }

    #[test]
    fn text_is_escaped_and_the_file_well_formed() {
        let line = vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let drawn = picture().line("<b>&", Colour::First, line).draw().unwrap();
        let file = drawn.standalone();
        assert!(file.contains("A &lt;title&gt;") && file.contains("&lt;b&gt;&amp;"));
        assert!(!file.contains("<b>") && !file.contains("NaN"));
        assert!(file.starts_with("<svg") && file.ends_with("</svg>"));
    }

    #[test]
    fn a_gap_breaks_the_line() {
        let broken = vec![
            (1.0, 2.0),
            (2.0, 2.5),
            (3.0, f64::NAN),
            (4.0, 1.0),
            (5.0, 2.0),
        ];
        let drawn = picture()
            .line("a", Colour::First, broken)
            .draw()
            .unwrap()
            .standalone();
        assert_eq!(drawn.matches("class=\"line\"").count(), 2);
    }

    #[test]
    fn names_move_apart_and_keep_their_order() {
        let places = [100.0, 101.0, 102.0, 200.0];
        let moved = spread(&places, 20.0);
        assert_eq!(moved.len(), places.len());
        assert!(
            moved
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= 20.0 - 1e-9)
        );
        assert_eq!(moved[1], 101.0);
        assert_eq!(moved[3], 200.0);
    }
}
