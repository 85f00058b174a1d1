//! The numbers of the report: what the run is, what it came to, and what it was set to.

use maud::{Markup, html};

use super::run::Run;
use crate::config::{EncoderKind, QueryGradient};
use crate::metrics::ResultLine;
use crate::plot::number;

/// Title, state and how long it took.
pub fn header(run: &Run) -> Markup {
    let steps = match &run.result {
        Some(result) => result.step,
        None => run.steps.last().map_or(0, |line| line.step),
    };
    let seconds: f64 = run.trained_epochs().map(|line| line.seconds).sum();
    let state = match run.result {
        Some(_) => "Ended",
        None => "Not ended",
    };
    html! {
        header {
            p class="kind" { "Run report" }
            h1 { (run.title()) }
            p class="lead" {
                (state) " after " (run.epochs_done()) " of " (run.config.epochs) " epochs and "
                (number(steps as f64)) " steps"
                @if seconds > 0.0 { "; " (duration(seconds)) " of training" }
                ". Seed " (run.config.seed) "."
            }
            @if run.torn {
                p class="missing" {
                    "The last line of metrics.jsonl is cut off: the run was writing it, or was \
                     killed. It is left out here."
                }
            }
        }
    }
}

/// Accuracy of the trained encoder beside raw pixels and the untrained encoder.
pub fn headline(run: &Run) -> Markup {
    html! {
        section {
            h2 { "Accuracy" }
            @match &run.result {
                Some(result) => (accuracies(run, result)),
                None => {
                    @let known = run.epochs.iter().filter_map(|e| Some((e.epoch, e.knn?))).next_back();
                    p class="missing" {
                        "No final evaluation: the run has not ended. "
                        @match known {
                            Some((epoch, knn)) => {
                                "After epoch " (epoch) " the 20 nearest neighbours were right for "
                                (percent(knn)) " of the " (run.evaluated()) "."
                            }
                            None => "No epoch has been evaluated yet.",
                        }
                    }
                }
            }
        }
    }
}

fn accuracies(run: &Run, result: &ResultLine) -> Markup {
    let rows = [
        ("Trained encoder", result.knn, result.linear_probe, "c1"),
        ("Raw pixels", result.knn_raw, result.linear_probe_raw, "c0"),
        (
            "Untrained encoder",
            result.knn_untrained,
            result.linear_probe_untrained,
            "c0",
        ),
    ];
    let cell = |value: f64, colour: &str| {
        html! {
            td class={ "measure " (colour) } {
                span class="number" { (percent(value)) }
                span class="bar" {
                    span style={ "width:" (format!("{:.1}", 100.0 * value.clamp(0.0, 1.0))) "%" } {}
                }
            }
        }
    };
    let error = standard_error(result.knn, result.test_images);
    html! {
        p class="lead" {
            "By its 20 nearest neighbours the trained encoder classifies "
            strong { (percent(result.knn)) } " of " (number(result.test_images as f64))
            " " (run.evaluated()) ": " (against(result.knn - result.knn_raw)) " raw pixels and "
            (against(result.knn - result.knn_untrained)) " the encoder before training."
        }
        table class="headline" {
            thead { tr { th {} th { "20-NN" } th { "linear probe" } } }
            tbody {
                @for (name, knn, probe, colour) in rows {
                    tr { th scope="row" { (name) } (cell(knn, colour)) (cell(probe, colour)) }
                }
            }
        }
        p class="note" {
            "20-NN: the 20 nearest of " (number(result.bank_images as f64)) " labelled training \
             images vote, weighted by similarity. Linear probe: a linear classifier on frozen \
             features. One seed; on so many images such a figure has a standard error of "
            (format!("{:.1}", 100.0 * error)) " points."
        }
    }
}

/// The standard error of a share over `count` independent trials.
fn standard_error(share: f64, count: usize) -> f64 {
    (share * (1.0 - share) / count as f64).sqrt()
}

fn against(difference: f64) -> String {
    let points = format!("{:.1}", 100.0 * difference.abs());
    match points.as_str() {
        "0.0" => "level with".into(),
        _ if difference > 0.0 => format!("{points} points above"),
        _ if difference < 0.0 => format!("{points} points below"),
        _ => "not comparable with".into(),
    }
}

/// The numbers behind the pictures, an epoch a row.
pub fn by_epoch(run: &Run) -> Markup {
    let plain = |value: Option<f64>| value.map_or("–".into(), number);
    let share = |value: Option<f64>| value.map_or("–".into(), percent);
    html! {
        section {
            h2 { "By epoch" }
            @if run.epochs.is_empty() {
                p class="missing" { "No epoch has ended yet." }
            } @else {
                details {
                    summary { "The numbers behind the pictures" }
                    div class="wide" {
                        table class="numbers" {
                            thead {
                                tr {
                                    th { "epoch" } th { "20-NN" } th { "loss" } th { "proxy acc." }
                                    th { "with synth." } th { "alignment" } th { "uniformity" }
                                    th { "same class" } th { "mixed harder" }
                                    th { "query-mixed harder" } th { "images/s" } th { "seconds" }
                                }
                            }
                            tbody {
                                @for line in &run.epochs {
                                    tr {
                                        th scope="row" {
                                            (line.epoch) @if line.warm_up { " (warm-up)" }
                                        }
                                        td { (share(line.knn)) }
                                        td { (plain(line.loss)) }
                                        td { (share(line.proxy_accuracy)) }
                                        td { (share(line.proxy_accuracy_with_synthetic)) }
                                        td { (plain(line.alignment)) }
                                        td { (plain(line.uniformity)) }
                                        td { (share(line.same_label_share)) }
                                        td { (share(line.mixed_harder)) }
                                        td { (share(line.query_mixed_harder)) }
                                        td { (number(line.images_per_second)) }
                                        td { (number(line.seconds)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The settings by the paper's symbols, and config.toml as it is.
pub fn settings(run: &Run) -> Markup {
    let c = &run.config;
    let gradient = match c.query_gradient {
        QueryGradient::Detached => "detached",
        QueryGradient::Attached => "attached",
    };
    let gray = run.about.as_ref().map(|about| about.image[0] == 1);
    let encoder = match (c.encoder, gray) {
        (Some(EncoderKind::Conv), _) | (None, Some(true)) => "conv",
        (Some(EncoderKind::Resnet), _) | (None, Some(false)) => "resnet",
        (None, None) => "by the images: conv for gray, resnet for colour",
    };
    let negatives = [
        ("method", run.method()),
        ("hardest N", number(c.hardest as f64)),
        ("mixed s", number(c.mixed as f64)),
        ("query-mixed s′", number(c.query_mixed as f64)),
        ("warm-up", format!("{} epochs", c.warm_up_epochs)),
        ("queue K", number(c.queue as f64)),
        ("temperature τ", number(c.temperature.into())),
        ("query gradient", gradient.into()),
    ];
    let (images, training_images) = match &run.about {
        Some(about) => {
            let [channels, height, width] = about.image;
            let size = format!("{channels}×{height}×{width}");
            (
                format!("{}, {size}", about.data),
                number(about.train_images as f64),
            )
        }
        None => (
            run.data(),
            c.train_images.map_or("all".into(), |n| number(n as f64)),
        ),
    };
    let training = [
        ("images", images),
        ("training images", training_images),
        ("encoder", encoder.into()),
        ("embedding d", number(c.embedding as f64)),
        ("batch B", number(c.batch as f64)),
        ("epochs", number(c.epochs as f64)),
        ("learning rate", number(c.learning_rate)),
        ("weight decay", number(c.weight_decay)),
        ("momentum", format!("{}", c.momentum)),
        ("seed", c.seed.to_string()),
    ];
    let program = run.about.as_ref().map(|about| {
        format!(
            "hardmix {}, {} threads, {} weights",
            about.version,
            about.threads,
            number(about.weights as f64)
        )
    });
    let list = |entries: &[(&str, String)]| {
        html! { dl { @for (name, value) in entries { div { dt { (name) } dd { (value) } } } } }
    };
    html! {
        section {
            h2 { "Settings" }
            div class="settings" { (list(&negatives)) (list(&training)) }
            @if let Some(program) = program { p class="note" { (program) "." } }
            details {
                summary { "config.toml, every setting" }
                pre { (toml::to_string_pretty(c).unwrap_or_else(|error| error.to_string())) }
            }
        }
    }
}

/// A share as a percentage with one decimal.
pub fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{:.1} %", 100.0 * share)
    } else {
        "–".into()
    }
}

/// Seconds in the unit that a person would use.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..100 => format!("{} s", number(seconds)),
        100..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_differences_in_words() {
        assert_eq!(duration(1.234), "1.23 s");
        assert_eq!(duration(330.0), "5 min 30 s");
        assert_eq!(duration(9000.0), "2 h 30 min");
        assert_eq!(against(0.034), "3.4 points above");
        assert_eq!(against(-0.01), "1.0 points below");
        assert_eq!(against(0.0001), "level with");
        assert_eq!(against(f64::NAN), "not comparable with");
    }

    #[test]
    fn the_standard_error_of_a_share() {
        // sqrt(0.85 · 0.15 / 10000) = 0.0035707…
        assert!((standard_error(0.85, 10_000) - 0.003_570_714).abs() < 1e-9);
    }
}
