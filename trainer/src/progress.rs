//! The progress bar: on standard error, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::metrics::StepLine;

const TEMPLATE: &str = "{wide_bar} {pos}/{len} steps  {msg}  {eta} left";

/// A progress bar over the steps of a run.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `steps` steps, of which `done` are done.
    #[must_use]
    pub fn new(steps: u64, done: u64) -> Self {
        let bar = ProgressBar::new(steps).with_position(done);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        // Without this, the time left would count the steps of an earlier process as made in no time.
        bar.reset_eta();
        Self { bar }
    }

    /// Shows a step.
    pub fn step(&self, line: &StepLine) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!(
                "{:.0} images/s  loss {:.3}  proxy accuracy {:.3}",
                line.images_per_second, line.loss, line.proxy_accuracy
            ));
        }
        self.bar.set_position(line.step);
    }

    /// Shows what is done after the steps.
    pub fn note(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
