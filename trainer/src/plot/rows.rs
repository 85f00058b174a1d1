//! Rows of dots on one common axis: a row per seed, a dot per method, an interval where there is one.

use super::axis::Axis;
use super::{Colour, Picture, Px};
use maud::html;

const WIDTH: f64 = 600.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 36.0;
const ROW: f64 = 30.0;

/// A dot of a row.
#[derive(Clone, Debug)]
pub struct Dot {
    /// What it stands for; shown when one points at it.
    pub name: String,
    /// Where it lies.
    pub value: f64,
    /// Its colour.
    pub colour: Colour,
}

/// A row: its dots, and an interval around them where one is known.
#[derive(Clone, Debug)]
pub struct Row {
    /// Written at its left.
    pub label: String,
    /// Its dots.
    pub dots: Vec<Dot>,
    /// From, to.
    pub interval: Option<(f64, f64)>,
    /// Whether it is set apart as the summary of the others.
    pub summary: bool,
}

/// A picture of rows.
#[derive(Clone, Debug)]
pub struct Rows {
    title: String,
    x: Axis,
    rows: Vec<Row>,
    keys: Vec<(String, Colour)>,
    upright: Option<(String, f64)>,
}

impl Rows {
    /// An empty picture.
    pub fn new(title: impl Into<String>, x: Axis) -> Self {
        Rows {
            title: title.into(),
            x,
            rows: Vec::new(),
            keys: Vec::new(),
            upright: None,
        }
    }

    /// Adds a row below the others.
    pub fn row(mut self, row: Row) -> Self {
        self.rows.push(row);
        self
    }

    /// Names a colour above the picture.
    pub fn key(mut self, name: &str, colour: Colour) -> Self {
        self.keys.push((name.into(), colour));
        self
    }

    /// Adds a dashed upright line.
    pub fn upright(mut self, name: &str, value: f64) -> Self {
        self.upright = Some((name.into(), value));
        self
    }

    /// Draws it; None where there is nothing to draw.
    pub fn draw(&self) -> Option<Picture> {
        let dots = self
            .rows
            .iter()
            .flat_map(|row| row.dots.iter().map(|dot| dot.value));
        let ends = self
            .rows
            .iter()
            .filter_map(|row| row.interval)
            .flat_map(|(a, b)| [a, b]);
        let upright = self.upright.iter().map(|(_, value)| *value);
        if !dots.clone().any(f64::is_finite) {
            return None;
        }
        let x = self
            .x
            .fit(dots.chain(ends).chain(upright), (LEFT, RIGHT), 0.06)?;
        let bottom = TOP + ROW * self.rows.len() as f64;
        let middle = |place: usize| TOP + ROW * (place as f64 + 0.5);
        let key_places = self.keys.iter().scan(LEFT, |at, (name, colour)| {
            let here = *at;
            *at += 34.0 + 7.5 * name.chars().count() as f64;
            Some((here, name, colour))
        });

        let body = html! {
            @for (at, name, colour) in key_places {
                g class=(colour.class()) { circle class="dot" cx=(Px(at)) cy="12" r="5" {} }
                text class="name" x=(Px(at + 11.0)) y="16" { (name) }
            }
            @for (at, text) in x.ticks(72.0) {
                line class="grid" x1=(Px(at)) x2=(Px(at)) y1=(Px(TOP)) y2=(Px(bottom)) {}
                text class="tick middle" x=(Px(at)) y=(Px(bottom + 19.0)) { (text) }
            }
            line class="axis" x1=(Px(LEFT)) x2=(Px(RIGHT)) y1=(Px(bottom)) y2=(Px(bottom)) {}
            text class="label middle" x=(Px((LEFT + RIGHT) / 2.0)) y=(Px(bottom + 40.0)) {
                (self.x.label)
            }
            @if let Some((name, at)) = self.upright.as_ref().and_then(|u| Some((&u.0, x.at(u.1)?)))
            {
                line class="level" x1=(Px(at)) x2=(Px(at)) y1=(Px(TOP)) y2=(Px(bottom)) {}
                text class="tick middle" x=(Px(at)) y=(Px(TOP - 6.0)) { (name) }
            }
            @for (place, row) in self.rows.iter().enumerate() {
                @if row.summary {
                    line class="axis" x1="4" x2=(Px(RIGHT))
                        y1=(Px(TOP + ROW * place as f64)) y2=(Px(TOP + ROW * place as f64)) {}
                }
                text class=(if row.summary { "number end" } else { "name end" })
                    x=(Px(LEFT - 14.0)) y=(Px(middle(place) + 4.0)) { (row.label) }
                @let placed: Vec<_> =
                    row.dots.iter().filter_map(|dot| Some((dot, x.at(dot.value)?))).collect();
                @if let [(_, first), .., (_, last)] = placed[..] {
                    line class="join" x1=(Px(first)) x2=(Px(last))
                        y1=(Px(middle(place))) y2=(Px(middle(place))) {}
                }
                @let colour = row.dots.first().map_or(Colour::Grey, |dot| dot.colour);
                @if let Some((a, b)) = row.interval.and_then(|(a, b)| Some((x.at(a)?, x.at(b)?))) {
                    g class=(colour.class()) {
                        line class="interval" x1=(Px(a)) x2=(Px(b))
                            y1=(Px(middle(place))) y2=(Px(middle(place))) {}
                        @for end in [a, b] {
                            line class="line" x1=(Px(end)) x2=(Px(end))
                                y1=(Px(middle(place) - 6.0)) y2=(Px(middle(place) + 6.0)) {}
                        }
                    }
                }
                @for (dot, at) in placed {
                    g class=(dot.colour.class()) {
                        circle class="dot" cx=(Px(at)) cy=(Px(middle(place)))
                            r=(if row.summary { 7 } else { 5 }) {
                            title { (row.label) ", " (dot.name) ": " (self.x.value(dot.value)) }
                        }
                    }
                }
            }
        };
        Some(Picture {
            title: self.title.clone(),
            width: WIDTH,
            height: bottom + 52.0,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_show_their_dots_and_interval() {
        let dot = Dot {
            name: "a".into(),
            value: 0.2,
            colour: Colour::First,
        };
        let row = |interval| Row {
            label: "seed 1".into(),
            dots: vec![dot.clone()],
            interval,
            summary: true,
        };
        let rows = Rows::new("t", Axis::linear("points"));
        assert!(rows.draw().is_none());
        let drawn = rows
            .row(row(Some((-0.1, 0.5))))
            .upright("no difference", 0.0)
            .draw()
            .unwrap();
        let file = drawn.standalone();
        assert!(file.contains("class=\"interval\"") && file.contains("no difference"));
    }
}
