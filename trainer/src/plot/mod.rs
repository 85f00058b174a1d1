//! Small pictures in SVG for the reports: lines over an axis, and rows of dots.
//!
//! Colours are CSS classes (`style.css`), so that one picture serves a light and a dark page. The
//! palette keeps its steps apart for the common colour-vision deficiencies, and every line also
//! carries its name at its end: colour is never the only key.

mod axis;
mod lines;
mod rows;

pub use axis::{Axis, number};
pub use lines::{Area, Level, Line, Lines};
pub use rows::{Dot, Row, Rows};

use maud::{Markup, PreEscaped, Render, html};

/// The style sheet of the pictures; a page that embeds one includes it once.
pub const STYLE: &str = include_str!("style.css");

/// The colour of a mark: one of the named roles, or a step of the ramp from early to late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colour {
    /// The run itself, or the method under test.
    First,
    /// What the first is set against.
    Second,
    /// A third quantity.
    Third,
    /// A baseline: neither good nor bad.
    Grey,
    /// A place in an ordered sequence, from 0 (early) to 1 (late).
    Ramp(f64),
}

impl Colour {
    const RAMP: usize = 10;

    fn class(self) -> String {
        match self {
            Colour::First => "c1".into(),
            Colour::Second => "c2".into(),
            Colour::Third => "c3".into(),
            Colour::Grey => "c0".into(),
            Colour::Ramp(place) => {
                let last = (Self::RAMP - 1) as f64;
                format!("r{}", (place.clamp(0.0, 1.0) * last).round())
            }
        }
    }
}

/// A coordinate in the picture, short enough to keep the file small.
struct Px(f64);

impl Render for Px {
    fn render_to(&self, buffer: &mut String) {
        use std::fmt::Write;
        let rounded = (self.0 * 10.0).round() / 10.0;
        // Writing to a String cannot fail.
        let _ = write!(buffer, "{}", if rounded == 0.0 { 0.0 } else { rounded });
    }
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Picture {
    title: String,
    width: f64,
    height: f64,
    body: Markup,
}

impl Picture {
    /// The picture as an element of an HTML page that includes [`STYLE`].
    pub fn inline(&self) -> Markup {
        html! {
            svg class="plot" role="img" aria-label=(self.title)
                viewBox={ "0 0 " (Px(self.width)) " " (Px(self.height)) } {
                (self.body)
            }
        }
    }

    /// The picture as a file of its own, with its title, style and background.
    pub fn standalone(&self) -> String {
        let (width, height) = (self.width + 24.0, self.height + 48.0);
        html! {
            svg class="plot" xmlns="http://www.w3.org/2000/svg" role="img" aria-label=(self.title)
                width=(Px(width)) height=(Px(height))
                viewBox={ "0 0 " (Px(width)) " " (Px(height)) } {
                style { (PreEscaped(STYLE)) }
                rect class="page" width=(Px(width)) height=(Px(height)) rx="8" {}
                text class="title" x="14" y="26" { (self.title) }
                g transform="translate(12 38)" { (self.body) }
            }
        }
        .into_string()
    }
}
