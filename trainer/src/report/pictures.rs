//! The pictures of the report: what is drawn, from what, and what one should see in it.

use maud::{Markup, html};

use super::page::Figure;
use super::run::Run;
use crate::config::Method;
use crate::metrics::{EpochLine, StepLine};
use crate::plot::{Axis, Colour, Lines, Picture, number};
use crate::statistics::median;

/// More points than this do not show on a picture 400 pixels wide: steps are averaged down to it.
const MOST_POINTS: usize = 120;
/// More curves than this cannot be told apart on the ramp.
const MOST_CURVES: usize = 12;

/// Every picture of a run, in the order of the page.
pub fn all(run: &Run) -> Vec<Figure> {
    vec![
        knn(run),
        loss(run),
        alignment(run),
        uniformity(run),
        proxy_accuracy(run),
        matching_probability(run),
        same_label_share(run),
        hardness(run),
        time(run),
    ]
}

/// The figures as sections of the page.
pub fn sections(figures: &[Figure]) -> Markup {
    let section = |heading: &str, names: &[&str]| {
        let chosen = figures.iter().filter(|figure| names.contains(&figure.name));
        html! {
            section {
                h2 { (heading) }
                div class="figures" { @for figure in chosen { (figure.show()) } }
            }
        }
    };
    html! {
        (section("Training", &["knn", "loss", "alignment", "uniformity"]))
        (section(
            "The hard negatives",
            &["proxy-accuracy", "matching-probability", "same-label-share", "hardness"],
        ))
        (section("Cost", &["time"]))
    }
}

/// The same stretch under every picture, so that they can be read side by side.
fn epoch_axis(run: &Run) -> Axis {
    Axis::linear("epoch")
        .whole()
        .include(0.0)
        .include(run.epochs_begun())
}

/// The finished picture, or why there is none.
fn drawn(run: &Run, lines: Lines, missing: &str) -> Result<Picture, String> {
    let warm_up = run.warm_up();
    let lines = if warm_up > 0.0 {
        lines.shade(0.0, warm_up, "warm-up")
    } else {
        lines
    };
    lines.draw().ok_or_else(|| missing.into())
}

/// A quantity of every sampled step over epochs, averaged to at most [`MOST_POINTS`] points.
fn by_step(run: &Run, of: impl Fn(&StepLine) -> f64) -> Vec<(f64, f64)> {
    let chunk = run.steps.len().div_ceil(MOST_POINTS).max(1);
    let mean = |lines: &[StepLine], of: &dyn Fn(&StepLine) -> f64| {
        lines.iter().map(of).sum::<f64>() / lines.len() as f64
    };
    run.steps
        .chunks(chunk)
        .map(|c| (mean(c, &|line| line.epoch), mean(c, &of)))
        .collect()
}

/// A quantity of every epoch that has it.
fn by_epoch(run: &Run, of: impl Fn(&EpochLine) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |line: &EpochLine| Some((line.epoch as f64, of(line)?));
    run.epochs.iter().filter_map(point).collect()
}

fn averaged(run: &Run) -> String {
    let to_a_point = run.steps.len().div_ceil(MOST_POINTS).max(1) as u64;
    let (batch, log_every) = (run.config.batch, run.config.log_every);
    if to_a_point > 1 {
        let among = to_a_point.saturating_mul(log_every);
        return format!(
            "Each point is the mean of the steps sampled among {among}, of {batch} images each."
        );
    }
    let shown = match log_every {
        1 => "all are shown".into(),
        _ => format!("one in {log_every} is shown"),
    };
    format!("Each point is one step of {batch} images; {shown}.")
}

fn knn(run: &Run) -> Figure {
    let axis = Axis::linear("20-NN accuracy").percent();
    let points = by_epoch(run, |line| line.knn);
    let mut lines = Lines::new("20-NN accuracy", epoch_axis(run), axis);
    lines = lines.line("trained", Colour::First, points);
    let levels = match &run.result {
        Some(result) => {
            lines = lines.level("raw pixels", result.knn_raw);
            "Epoch 0 is the encoder before training. A useful run ends above the dashed line: what \
             the same vote gets from raw pixels."
        }
        None => {
            "Epoch 0 is the encoder before training. The line of raw pixels is missing: it is \
             measured when the run ends."
        }
    };
    Figure {
        name: "knn",
        title: "20-NN accuracy",
        picture: drawn(run, lines, "No epoch has been evaluated yet."),
        caption: format!(
            "On the {}: the 20 nearest training images vote, weighted by similarity. {levels}",
            run.evaluated()
        ),
    }
}

fn loss(run: &Run) -> Figure {
    let lines = Lines::new("Loss", epoch_axis(run), Axis::linear("loss")).line(
        "loss",
        Colour::First,
        by_step(run, |line| line.loss),
    );
    let step = if run.warm_up() > 0.0 {
        " It steps up where warm-up ends: synthetic negatives join the same softmax."
    } else {
        ""
    };
    Figure {
        name: "loss",
        title: "Loss",
        picture: drawn(run, lines, "No step has been written yet."),
        caption: format!(
            "InfoNCE over the positive, the {} queue rows and the synthetic negatives. It can rise \
             while keys replace the random rows that the queue starts with, and need not fall far \
             after: the negatives grow harder with the encoder.{step} {}",
            number(run.config.queue as f64),
            averaged(run)
        ),
    }
}

fn proxy_accuracy(run: &Run) -> Figure {
    let axis = Axis::linear("queries that find their key").percent();
    let lines = Lines::new("Proxy accuracy", epoch_axis(run), axis).line(
        "against the queue",
        Colour::First,
        by_epoch(run, |line| line.proxy_accuracy),
    );
    let lines = if run.mixes() {
        let with = by_epoch(run, |line| line.proxy_accuracy_with_synthetic);
        lines.line("and synthetics", Colour::Second, with)
    } else {
        lines
    };
    Figure {
        name: "proxy-accuracy",
        title: "Proxy accuracy",
        picture: drawn(run, lines, "No epoch has ended yet."),
        caption: "Share of queries strictly nearer to their own key than to every negative, the \
                  epoch's mean. The gap between the two lines is how much harder the synthetic \
                  negatives make the task (the paper's Fig. 2b)."
            .into(),
    }
}

fn alignment(run: &Run) -> Figure {
    let axis = Axis::linear("alignment, 2 − 2 q·k");
    let points = by_epoch(run, |line| line.alignment);
    let lines =
        Lines::new("Alignment", epoch_axis(run), axis).line("q to k", Colour::First, points);
    Figure {
        name: "alignment",
        title: "Alignment",
        picture: drawn(run, lines, "No epoch has ended yet."),
        caption:
            "Mean squared distance between a query and its key: two views of one image. Lower \
                  is closer; the epoch's mean."
                .into(),
    }
}

fn uniformity(run: &Run) -> Figure {
    let axis = Axis::linear("uniformity, log mean exp(−2 ‖q − n‖²)");
    let points = by_epoch(run, |line| line.uniformity);
    let lines = Lines::new("Uniformity", epoch_axis(run), axis);
    let lines = lines.line("q to queue", Colour::Third, points);
    Figure {
        name: "uniformity",
        title: "Uniformity",
        picture: drawn(run, lines, "No uniformity has been measured yet."),
        caption:
            "How evenly the embeddings cover the sphere, over queries and queue rows. Lower is \
                  more even; rows spread at random come to about −4. In the first epoch \
                  the queue still holds the random rows it started with. The paper reports that \
                  mixing makes features more uniform; that shows only against a run of MoCo."
                .into(),
    }
}

fn matching_probability(run: &Run) -> Figure {
    let curves: Vec<(u64, &Vec<f64>)> = run
        .trained_epochs()
        .filter_map(|line| Some((line.epoch, line.matching_probability.as_ref()?)))
        .filter(|(_, probabilities)| !probabilities.is_empty())
        .collect();
    let chosen = evenly(curves.len(), MOST_CURVES);
    let (first, last) = match (curves.first(), curves.last()) {
        (Some(first), Some(last)) => (first.0, last.0),
        _ => (0, 0),
    };
    let title = "Matching probability by rank";
    let y = Axis::log("probability of the negative of that rank");
    let mut lines = Lines::new(title, Axis::log("rank of the negative, hardest first"), y)
        .ramp(&format!("ep. {first}"), &format!("ep. {last}"));
    for (epoch, probabilities) in chosen.into_iter().map(|place| curves[place]) {
        let place = (epoch as f64 - first as f64) / (last as f64 - first as f64).max(1.0);
        let point = |rank: usize| Some((rank as f64, *probabilities.get(rank - 1)?));
        let points = log_ranks(probabilities.len())
            .into_iter()
            .filter_map(point)
            .collect();
        lines = lines.line(&format!("epoch {epoch}"), Colour::Ramp(place), points);
    }
    Figure {
        name: "matching-probability",
        title,
        picture: lines.draw().ok_or_else(|| {
            "No matching probabilities have been measured: the first come at the end of the first \
             epoch."
                .into()
        }),
        caption:
            "The softmax probability of a query's hardest, second hardest, … queue row, without \
                  synthetics; one curve an epoch, pale to full (the paper's Fig. 2a, here as true \
                  probabilities on logarithmic axes). In the paper the curve grows steeper with \
                  training: ever fewer negatives carry the gradient."
                .into(),
    }
}

fn same_label_share(run: &Run) -> Figure {
    let axis = Axis::linear("same class among the hardest").percent();
    let points = by_epoch(run, |line| line.same_label_share);
    let lines = Lines::new("False negatives", epoch_axis(run), axis);
    let lines = lines.line("same class", Colour::First, points);
    let masked = match run.config.method {
        Method::Oracle => " The oracle masks them: its share is 0 by construction.",
        _ => "",
    };
    Figure {
        name: "same-label-share",
        title: "False negatives among the hardest",
        picture: drawn(
            run,
            lines,
            "No share has been measured: it needs labels, and an epoch that ended.",
        ),
        caption: format!(
            "Share of a query's {} hardest negatives that are of its own class (the paper's Fig. \
             2c); the random rows that the queue starts with have no class and do not count. It \
             rises as classes form: the better the embedding, the more of the hardest negatives \
             are false. Labels are used to measure this, not to train.{masked}",
            run.config.hardest
        ),
    }
}

fn hardness(run: &Run) -> Figure {
    let title = "Synthetics harder than every real negative";
    let axis = Axis::linear("share of the synthetics made").percent();
    let lines = Lines::new(title, epoch_axis(run), axis)
        .line(
            "mixed",
            Colour::First,
            by_epoch(run, |line| line.mixed_harder),
        )
        .line(
            "query-mixed",
            Colour::Second,
            by_epoch(run, |line| line.query_mixed_harder),
        );
    let missing = if run.mixes() {
        "No synthetic negative has been made yet."
    } else {
        "This run makes no synthetic negatives."
    };
    Figure {
        name: "hardness",
        title,
        picture: drawn(run, lines, missing),
        caption: "Share of the synthetic negatives that lie strictly nearer to the query than its \
                  hardest row of the queue. Query-mixed ones contain the query and are harder; the \
                  mean of two rows, scaled back to the sphere, can lie nearer than either."
            .into(),
    }
}

fn time(run: &Run) -> Figure {
    let a_step = |line: &EpochLine| {
        let steps = line.images_per_second * line.seconds / run.config.batch as f64;
        let [loss, step] = [line.loss_seconds, line.seconds].map(|s| 1e3 * s / steps);
        step.is_finite().then_some((line.epoch as f64, loss, step))
    };
    let steps: Vec<(f64, f64, f64)> = run.trained_epochs().filter_map(a_step).collect();
    let share = median(steps.iter().map(|&(_, loss, step)| loss / step));
    let lines = Lines::new(
        "Time per step",
        epoch_axis(run),
        Axis::linear("ms").include(0.0),
    )
    .area(Colour::Grey, steps.clone())
    .area(
        Colour::First,
        steps.iter().map(|s| (s.0, 0.0, s.1)).collect(),
    )
    .line(
        "whole step",
        Colour::Grey,
        steps.iter().map(|s| (s.0, s.2)).collect(),
    )
    .line(
        "in the loss",
        Colour::First,
        steps.iter().map(|s| (s.0, s.1)).collect(),
    );
    let share = match share.is_finite() {
        true => format!(
            " Over the epochs, the loss takes {:.0} % in the median.",
            100.0 * share
        ),
        false => String::new(),
    };
    Figure {
        name: "time",
        title: "Time per step",
        picture: drawn(run, lines, "No epoch has ended yet."),
        caption: format!(
            "Mean over the steps of an epoch: the loss with its gradient, and the whole step with \
             data, both encoders and the optimiser.{share}"
        ),
    }
}

/// At most `most` of `count` places, the first and the last among them, evenly apart.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    (0..most)
        .map(|i| (i * (count - 1) + (most - 1) / 2) / (most - 1))
        .collect()
}

/// Ranks from 1 to `last` at nearly even distances on a logarithmic axis, 16 to a doubling at most.
fn log_ranks(last: usize) -> Vec<usize> {
    let mut ranks = Vec::new();
    let mut rank = 1;
    while rank < last {
        ranks.push(rank);
        rank += (rank / 16).max(1);
    }
    ranks.push(last);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_curves_hold_the_first_and_the_last() {
        assert_eq!(evenly(3, 12), [0, 1, 2]);
        let chosen = evenly(100, 12);
        assert_eq!((chosen.len(), chosen[0], chosen[11]), (12, 0, 99));
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn ranks_ascend_to_the_last() {
        assert_eq!(log_ranks(1), [1]);
        let ranks = log_ranks(16384);
        assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]) && ranks.len() < 250);
        assert_eq!(ranks.last(), Some(&16384));
    }
}
