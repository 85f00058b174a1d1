//! The page around a report: self-contained, light and dark.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::plot::{self, Picture};

const STYLE: &str = include_str!("page.css");

/// A whole HTML page.
pub fn page(title: &str, body: Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · hardmix" }
                style { (PreEscaped(plot::STYLE)) (PreEscaped(STYLE)) }
            }
            body class="palette" {
                main { (body) }
                footer { "hardmix " (env!("CARGO_PKG_VERSION")) }
            }
        }
    }
    .into_string()
}

/// A picture with its title and caption, or the reason why it is missing.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Names the picture's file.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// The picture, or what is missing, as a sentence.
    pub picture: Result<Picture, String>,
    /// What it shows and what one should see.
    pub caption: String,
}

impl Figure {
    /// The figure on a page, also where its picture is missing.
    pub fn show(&self) -> Markup {
        html! {
            figure {
                h3 { (self.title) }
                @match &self.picture {
                    Ok(picture) => (picture.inline()),
                    Err(missing) => p class="missing" { (missing) },
                }
                figcaption { (self.caption) }
            }
        }
    }
}
