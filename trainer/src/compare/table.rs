//! The comparison on a terminal, and the rows that the page shows as well.

use super::comparison::{Comparison, Cost, Figures, signed};
use crate::plot::number;
use crate::report::percent;
use crate::statistics::Interval;

/// One row: a name and what stands under MoCo, under MoCHi and under the difference.
pub struct Row(pub &'static str, pub String, pub String, pub String);

/// The rows of the table.
pub fn rows(comparison: &Comparison) -> Vec<Row> {
    let accuracy = |name, figures: &Figures| {
        let spread = |mean: f64, deviation: Option<f64>| match deviation {
            Some(deviation) => format!("{:.2} ± {:.2} %", 100.0 * mean, 100.0 * deviation),
            None => format!("{:.2} %", 100.0 * mean),
        };
        Row(
            name,
            spread(figures.moco, figures.moco_deviation),
            spread(figures.mochi, figures.mochi_deviation),
            interval(&figures.difference, signed, "points"),
        )
    };
    let cost = |name, cost: &Cost| {
        let percent = |value: f64| format!("{value:+.1}").replacen('-', "−", 1);
        Row(
            name,
            number(cost.moco),
            number(cost.mochi),
            interval(&cost.overhead_percent, percent, "%"),
        )
    };
    vec![
        accuracy("20-NN", &comparison.knn),
        accuracy("linear probe", &comparison.linear_probe),
        cost("seconds an epoch", &comparison.epoch_seconds),
        cost("of them in the loss", &comparison.loss_seconds),
    ]
}

fn interval(interval: &Interval, write: impl Fn(f64) -> String, unit: &str) -> String {
    match (interval.low, interval.high) {
        (Some(low), Some(high)) => {
            format!(
                "{} ({} to {}) {unit}",
                write(interval.mean),
                write(low),
                write(high)
            )
        }
        _ => format!("{} {unit}", write(interval.mean)),
    }
}

/// The table for a terminal, with the verdict below.
pub fn table(comparison: &Comparison) -> String {
    let seeds: Vec<String> = comparison
        .pairs
        .iter()
        .map(|pair| pair.seed.to_string())
        .collect();
    let head = Row(
        "",
        "MoCo".into(),
        comparison.mochi(),
        "MoCHi − MoCo (95 % interval)".into(),
    );
    let rows: Vec<Row> = [head].into_iter().chain(rows(comparison)).collect();
    let widest = |of: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| of(row).chars().count())
            .max()
            .unwrap_or_default()
    };
    let (name, moco, mochi) = (widest(|r| r.0), widest(|r| &r.1), widest(|r| &r.2));
    let lines: String = rows
        .iter()
        .map(|Row(n, a, b, d)| format!("{n:<name$}   {a:<moco$}   {b:<mochi$}   {d}\n"))
        .collect();
    format!(
        "\n{lines}\n20-NN of raw pixels {}, of the untrained encoder {}. {} of {} pairs (seeds {}); \
         ± is the standard deviation over seeds.\n{}\n\n",
        percent(comparison.knn_raw),
        percent(comparison.knn_untrained),
        comparison.pairs.len(),
        comparison.seeds.len(),
        seeds.join(", "),
        comparison.in_words,
    )
}
