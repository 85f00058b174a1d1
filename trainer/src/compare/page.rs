//! `compare.html`.

use maud::html;

use super::comparison::{Comparison, Pair, Side};
use super::folder_name;
use super::table::{Row, rows};
use crate::config::Method;
use crate::plot::{Axis, Colour, Dot, Lines, Picture, Row as DotRow, Rows, number};
use crate::report::page::{self, Figure};
use crate::report::percent;

/// The whole page.
pub fn page(comparison: &Comparison) -> String {
    let title = format!("{} against MoCo", comparison.mochi());
    let settings = &comparison.settings;
    let images = comparison
        .pairs
        .first()
        .map_or(0, |pair| pair.moco.result.test_images);
    let data = comparison.pairs.first().map_or("", |pair| &pair.moco.data);
    let folder = |pair: &Pair, method| format!("{}/report.html", folder_name(method, pair.seed));
    let body = html! {
        header {
            p class="kind" { "Comparison" }
            h1 { (title) }
            p class="lead" {
                (comparison.pairs.len()) " of " (comparison.seeds.len()) " paired seeds on "
                (data) ", " (settings.epochs) " epochs each, "
                (settings.warm_up_epochs) " of them warm-up. The two runs of a pair share seed, data \
                order, views and initial weights: they differ in the synthetic negatives alone."
            }
            p class="verdict" { (comparison.in_words) }
        }
        section {
            h2 { "In numbers" }
            div class="wide" {
                table class="numbers" {
                    thead {
                        tr {
                            th {} th { "MoCo" } th { "MoCHi" } th { "MoCHi − MoCo (95 % interval)" }
                        }
                    }
                    tbody {
                        @for Row(name, moco, mochi, difference) in rows(comparison) {
                            tr {
                                th scope="row" { (name) }
                                td { (moco) } td { (mochi) } td { (difference) }
                            }
                        }
                    }
                }
            }
            p class="note" {
                "Accuracies on " (number(images as f64)) " images; 20-NN of raw pixels " (percent(comparison.knn_raw))
                ", of the untrained encoder " (percent(comparison.knn_untrained)) ". ± is the \
                standard deviation over seeds, the interval Student's t over the paired differences. \
                Times are medians over a run's epochs after warm-up, then means over the seeds; the \
                overhead is taken pair by pair, and an epoch's is also a step's. The verdict rests on 20-NN alone: the linear probe is shown \
                beside it, not as a second chance."
            }
        }
        section {
            h2 { "In pictures" }
            div class="figures" {
                @for figure in figures(comparison) { (figure.show()) }
            }
        }
        section {
            h2 { "The runs" }
            div class="wide" {
                table class="numbers" {
                    thead {
                        tr {
                            th { "seed" } th { "MoCo" } th { "MoCHi" } th { "difference, points" }
                            th { "reports" }
                        }
                    }
                    tbody {
                        @for pair in &comparison.pairs {
                            tr {
                                th scope="row" { (pair.seed) }
                                td { (percent(pair.moco.result.knn)) }
                                td { (percent(pair.mochi.result.knn)) }
                                td { (super::comparison::signed(difference(pair))) }
                                td {
                                    a href=(folder(pair, Method::Moco)) { "MoCo" } " · "
                                    a href=(folder(pair, Method::Mochi)) { "MoCHi" }
                                }
                            }
                        }
                    }
                }
            }
            details {
                summary { "The settings of MoCHi" }
                pre { (toml::to_string_pretty(settings).unwrap_or_else(|error| error.to_string())) }
            }
        }
    };
    page::page(&title, body)
}

fn difference(pair: &Pair) -> f64 {
    pair.mochi.result.knn - pair.moco.result.knn
}

/// The pictures of a comparison.
pub fn figures(comparison: &Comparison) -> Vec<Figure> {
    vec![
        differences(comparison),
        by_seed(comparison),
        by_epoch(comparison),
        loss_time(comparison),
    ]
}

fn differences(comparison: &Comparison) -> Figure {
    let axis = Axis::linear("MoCHi − MoCo, points of 20-NN accuracy");
    let dot = |value: f64, colour| Dot {
        name: "MoCHi − MoCo".into(),
        value: 100.0 * value,
        colour,
    };
    let row = |label, dot, interval, summary| DotRow {
        label,
        dots: vec![dot],
        interval,
        summary,
    };
    let mut rows = Rows::new("Paired differences", axis).upright("no difference", 0.0);
    for pair in &comparison.pairs {
        let dot = dot(difference(pair), Colour::Grey);
        rows = rows.row(row(format!("seed {}", pair.seed), dot, None, false));
    }
    let interval = &comparison.knn.difference;
    let ends = interval
        .low
        .zip(interval.high)
        .map(|(low, high)| (100.0 * low, 100.0 * high));
    rows = rows.row(row(
        "mean".into(),
        dot(interval.mean, Colour::First),
        ends,
        true,
    ));
    Figure {
        name: "paired-differences",
        title: "Paired differences",
        picture: rows.draw().ok_or_else(|| "No pair has ended.".into()),
        caption:
            "A dot a seed; below, their mean with its 95 % interval. Where the interval crosses \
                  the dashed line, nothing is shown."
                .into(),
    }
}

fn by_seed(comparison: &Comparison) -> Figure {
    Figure {
        name: "accuracy-by-seed",
        title: "Accuracy by seed",
        picture: pairs(
            comparison,
            Rows::new("Accuracy by seed", Axis::linear("20-NN accuracy").percent()),
            |side| side.result.knn,
        ),
        caption: "Both methods of every pair. How far the seeds lie apart is the noise that an \
                  unpaired comparison would drown in."
            .into(),
    }
}

fn loss_time(comparison: &Comparison) -> Figure {
    Figure {
        name: "loss-time-by-seed",
        title: "Time in the loss",
        picture: pairs(
            comparison,
            Rows::new(
                "Time in the loss",
                Axis::linear("seconds an epoch, after warm-up").include(0.0),
            ),
            |side| side.loss_seconds,
        ),
        caption: "What mixing costs where it happens: the part of an epoch that goes into the \
                  loss and its gradient. Other work on the machine shows here as scatter."
            .into(),
    }
}

/// A row a pair, a dot a method.
fn pairs(
    comparison: &Comparison,
    rows: Rows,
    of: impl Fn(&Side) -> f64,
) -> Result<Picture, String> {
    let dot = |name: &str, side: &Side, colour| Dot {
        name: name.into(),
        value: of(side),
        colour,
    };
    let mut rows = rows.key("MoCo", Colour::Second).key("MoCHi", Colour::First);
    for pair in &comparison.pairs {
        let moco = dot("MoCo", &pair.moco, Colour::Second);
        let mochi = dot("MoCHi", &pair.mochi, Colour::First);
        let label = format!("seed {}", pair.seed);
        rows = rows.row(DotRow {
            label,
            dots: vec![moco, mochi],
            interval: None,
            summary: false,
        });
    }
    rows.draw().ok_or_else(|| "No pair has ended.".into())
}

fn by_epoch(comparison: &Comparison) -> Figure {
    let axis = Axis::linear("20-NN accuracy").percent();
    let x = Axis::linear("epoch").whole().include(0.0);
    let mut lines = Lines::new("Accuracy by epoch", x, axis);
    type OfPair = fn(&Pair) -> &Side;
    let sides: [(&str, Colour, OfPair); 2] = [
        ("MoCo", Colour::Second, |pair| &pair.moco),
        ("MoCHi", Colour::First, |pair| &pair.mochi),
    ];
    for (name, colour, side) in sides {
        let spread = over_seeds(comparison.pairs.iter().map(side));
        lines = lines
            .area(colour, spread.iter().map(|s| (s.0, s.1, s.3)).collect())
            .line(name, colour, spread.iter().map(|s| (s.0, s.2)).collect());
    }
    let warm_up = comparison.settings.warm_up_epochs as f64;
    lines = lines
        .shade(0.0, warm_up, "warm-up")
        .level("raw pixels", comparison.knn_raw);
    Figure {
        name: "accuracy-by-epoch",
        title: "Accuracy by epoch",
        picture: lines.draw().ok_or_else(|| "No epoch was evaluated.".into()),
        caption:
            "Mean over the seeds, with the lowest and the highest seed shaded. During warm-up \
                  the two methods are the same, bit for bit; they part where the grey stretch ends."
                .into(),
    }
}

/// Epoch, lowest, mean and highest accuracy over the seeds, for the epochs that all have.
fn over_seeds<'a>(sides: impl Iterator<Item = &'a Side>) -> Vec<(f64, f64, f64, f64)> {
    let sides: Vec<&Side> = sides.collect();
    let Some(first) = sides.first() else {
        return Vec::new();
    };
    let spread = |&(epoch, _): &(u64, f64)| {
        let at = |side: &&Side| side.knn_by_epoch.iter().find(|p| p.0 == epoch).map(|p| p.1);
        let values: Vec<f64> = sides.iter().map(at).collect::<Option<_>>()?;
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some((epoch as f64, low, crate::statistics::mean(&values), high))
    };
    first.knn_by_epoch.iter().filter_map(spread).collect()
}
