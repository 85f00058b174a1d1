//! The training run, from its configuration to its folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor};
use hardmix::candle::{Loss, Queue};
use hardmix::{DType, Draws, NO_LABEL};
use serde::{Deserialize, Serialize};

use crate::augment::{self, Normalisation, ViewKey};
use crate::checkpoint::{self, State, replace};
use crate::config::{EncoderKind, TrainConfig};
use crate::data::Dataset;
use crate::encoder::{Encoder, Mode};
use crate::error::{Error, Result};
use crate::evaluate::{self, Features};
use crate::metrics::{EpochLine, Line, ResultLine, RunLine, StepLine, Writer};
use crate::optimiser::{AdamW, learning_rate};
use crate::progress::Progress;
use crate::report;
use crate::run_folder::RunFolder;

/// What a training run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// The final evaluation; none where the run was interrupted.
    pub result: Option<ResultLine>,
    /// What a step of this process took.
    pub time: StepTime,
}

/// Trains by `config` into the folder `run`, which must not hold a run yet, and writes the report.
///
/// Once `interrupt` is set, training ends after the current step with a checkpoint. Progress is
/// shown where standard error is a terminal.
///
/// # Errors
/// See [`crate::error::Error`]; whatever was written by then stays, and the run can be resumed from
/// its newest checkpoint.
pub fn train(config: &TrainConfig, run: &Path, interrupt: &AtomicBool) -> Result<Summary> {
    config.validate()?;
    let folder = RunFolder::new(run);
    if folder.config().exists() {
        return Err(Error::RunFolder {
            path: run.to_owned(),
            reason: "already holds a run; go on with it by --resume, or name another folder",
        });
    }
    // The data first: a mistyped path should leave no folder behind.
    let trainer = Trainer::new(config, folder)?;
    trainer.begin()?;
    trainer.run(interrupt)
}

/// Goes on with the run in the folder `run` from its newest checkpoint, to the bits of a run that
/// never stopped; metrics behind the checkpoint are cut.
///
/// # Errors
/// As for [`train`].
pub fn resume(run: &Path, interrupt: &AtomicBool) -> Result<Summary> {
    let folder = RunFolder::new(run);
    let nothing = |reason| Error::RunFolder {
        path: run.to_owned(),
        reason,
    };
    if !folder.config().exists() {
        return Err(nothing("holds no run: it has no config.toml"));
    }
    let config = TrainConfig::read(&folder.config())?;
    let mut trainer = Trainer::new(&config, folder)?;
    match checkpoint::newest(&trainer.folder)? {
        Some(path) => trainer.state.load(&path)?,
        None => trainer.begin()?,
    }
    trainer.run(interrupt)
}

/// [`resume`] where the folder holds a run of this very configuration, else [`train`].
///
/// # Errors
/// As for [`train`], and [`Error::RunFolder`] for a run of another configuration.
pub fn train_or_resume(
    config: &TrainConfig,
    run: &Path,
    interrupt: &AtomicBool,
) -> Result<Summary> {
    let folder = RunFolder::new(run);
    if !folder.config().exists() {
        return train(config, run, interrupt);
    }
    if TrainConfig::read(&folder.config())? != config.absolute()? {
        return Err(Error::RunFolder {
            path: run.to_owned(),
            reason: "holds a run with other settings; name another folder",
        });
    }
    resume(run, interrupt)
}

/// What training took, by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTime {
    steps: u64,
    total: f64,
    timed_steps: u64,
    timed_total: f64,
    loss: f64,
}

impl StepTime {
    fn add(&mut self, total: f64, timed: Option<Timed>) {
        self.steps += 1;
        self.total += total;
        if let Some(Timed { step, loss }) = timed {
            self.timed_steps += 1;
            self.timed_total += step;
            self.loss += loss;
        }
    }

    /// Seconds of a step, data included; none where there was none.
    #[must_use]
    pub fn step_seconds(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.total / self.steps as f64)
    }

    /// The part of a step that is spent in the loss and its gradient.
    #[must_use]
    pub fn loss_share(&self) -> Option<f64> {
        (self.timed_steps > 0).then(|| self.loss / self.timed_total)
    }

    /// Seconds of all steps spent in the loss, from those that were timed apart.
    fn loss_seconds(&self) -> f64 {
        self.loss * self.steps as f64 / self.timed_steps.max(1) as f64
    }
}

/// Seconds of one step that was timed apart: all of it, and the loss with its gradient.
#[derive(Debug, Clone, Copy)]
struct Timed {
    step: f64,
    loss: f64,
}

/// A sum and how many were added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.sum += value;
            self.count += 1;
        }
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The sums behind an epoch's means, which a checkpoint within the epoch keeps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EpochMeans {
    loss: Mean,
    proxy_accuracy: Mean,
    proxy_accuracy_with_synthetic: Mean,
    alignment: Mean,
    uniformity: Mean,
    same_label_share: Mean,
    mixed_harder: Mean,
    query_mixed_harder: Mean,
    matching_probability: Vec<Mean>,
}

impl EpochMeans {
    fn add(&mut self, loss: f64, metrics: &hardmix::Metrics) {
        self.loss.add(Some(loss));
        self.proxy_accuracy.add(Some(metrics.proxy_accuracy));
        self.proxy_accuracy_with_synthetic
            .add(Some(metrics.proxy_accuracy_with_synthetic));
        self.alignment.add(Some(metrics.alignment));
        self.uniformity.add(metrics.uniformity);
        self.same_label_share.add(metrics.same_label_share);
        self.mixed_harder.add(metrics.mixed_harder);
        self.query_mixed_harder.add(metrics.query_mixed_harder);
        if let Some(by_rank) = &metrics.matching_probability {
            self.matching_probability
                .resize(by_rank.len(), Mean::default());
            let ranks = self.matching_probability.iter_mut().zip(by_rank);
            ranks.for_each(|(mean, &probability)| mean.add(Some(probability)));
        }
    }
}

struct Trainer {
    config: TrainConfig,
    folder: RunFolder,
    data: Dataset,
    normalisation: Normalisation,
    encoder_kind: EncoderKind,
    device: Device,
    loss: Loss,
    loss_config: hardmix::Config,
    state: State,
    steps_per_epoch: u64,
    /// The order of the epoch that has begun.
    order: (u64, Vec<usize>),
}

/// Apart from the run's own seed, so that weights and queue rows are not the same numbers.
const QUEUE_SEED: u64 = 0x9E37_79B9_7F4A_7C15;

impl Trainer {
    fn new(config: &TrainConfig, folder: RunFolder) -> Result<Self> {
        let config = config.absolute()?;
        let (loss_config, device) = (config.loss()?, config.device.candle()?);
        let data = Dataset::load(&config)?;
        let gray = data.train.shape.channels == 1;
        let default = if gray {
            EncoderKind::Conv
        } else {
            EncoderKind::Resnet
        };
        let encoder_kind = config.encoder.unwrap_or(default);
        let encoder = Encoder::new(
            encoder_kind,
            data.train.shape,
            config.embedding,
            config.seed,
            &device,
        )?;
        let queue_seed = config.seed ^ QUEUE_SEED;
        let (rows, dim) = (config.queue, config.embedding);
        let queue = hardmix::Queue::random(rows, dim, DType::F32, queue_seed)?;
        let state = State {
            step: 0,
            momentum_encoder: encoder.copied()?,
            encoder,
            optimiser: AdamW::default(),
            queue: Queue::new(queue.with_labels(vec![NO_LABEL; config.queue])?, &device)?,
            means: EpochMeans::default(),
        };
        Ok(Self {
            folder,
            normalisation: Normalisation::of(&data.train),
            encoder_kind,
            device,
            loss: Loss::new(loss_config.clone()),
            loss_config,
            state,
            steps_per_epoch: (data.train.len() / config.batch) as u64,
            order: (u64::MAX, Vec::new()),
            data,
            config,
        })
    }

    /// Makes the folder, with its configuration and the checkpoint of step 0.
    fn begin(&self) -> Result<()> {
        // Settings that cannot be written should leave no folder behind either.
        let settings = self.config.to_toml()?;
        let checkpoints = self.folder.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        replace(&self.folder.config(), settings.as_bytes())?;
        self.state.save(&self.folder)
    }

    fn steps(&self) -> u64 {
        self.config.epochs * self.steps_per_epoch
    }

    fn run(mut self, interrupt: &AtomicBool) -> Result<Summary> {
        let mut metrics = Writer::after(&self.folder.metrics(), self.state.step)?;
        if self.state.step == 0 {
            self.write_start(&mut metrics)?;
        }
        let progress = Progress::new(self.steps(), self.state.step);
        let (mut of_epoch, mut of_run) = (StepTime::default(), StepTime::default());
        let mut result = None;
        while self.state.step < self.steps() && !interrupt.load(Ordering::SeqCst) {
            let began = Instant::now();
            let (line, timed) = self.step()?;
            let last = self.state.step == self.steps();
            let epoch_ends = self.state.step.is_multiple_of(self.steps_per_epoch);
            if epoch_ends {
                self.device.synchronize()?;
            }
            for time in [&mut of_epoch, &mut of_run] {
                time.add(began.elapsed().as_secs_f64(), timed);
            }
            if let Some(line) = line {
                progress.step(&line);
                if self.sampled(line.step) {
                    metrics.write(&Line::Step(line))?;
                }
            }
            if epoch_ends {
                let began = Instant::now();
                let epoch = self.state.step / self.steps_per_epoch;
                let due = self.config.evaluate_every > 0
                    && epoch.is_multiple_of(self.config.evaluate_every);
                if last {
                    result = Some(self.final_evaluation(&progress)?);
                }
                let knn = match &result {
                    Some(result) => Some(result.knn),
                    None => due.then(|| self.knn(&self.state.encoder)).transpose()?,
                };
                let line = self.epoch_line(of_epoch, knn, began.elapsed().as_secs_f64());
                metrics.write(&Line::Epoch(line))?;
                self.state.means = EpochMeans::default();
                of_epoch = StepTime::default();
            }
            let interrupted = interrupt.load(Ordering::SeqCst);
            if last || interrupted || self.state.step.is_multiple_of(self.config.checkpoint_every) {
                metrics.sync()?;
                self.state.save(&self.folder)?;
            }
        }
        if self.state.step == self.steps() {
            let line = match result.take() {
                Some(line) => line,
                // Killed behind the last checkpoint, or resumed although ended.
                None => self.final_evaluation(&progress)?,
            };
            metrics.write(&Line::Result(line.clone()))?;
            metrics.sync()?;
            result = Some(line);
        }
        progress.finish();
        report::write(self.folder.root())?;
        Ok(Summary {
            steps: self.state.step,
            result,
            time: of_run,
        })
    }

    fn write_start(&self, metrics: &mut Writer) -> Result<()> {
        let shape = self.data.train.shape;
        let data = match &self.config.data {
            None => "Fashion-MNIST, embedded part".to_owned(),
            Some(path) => path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        let weights = self
            .state
            .encoder
            .weights()
            .values()
            .map(|weight| weight.elem_count());
        metrics.write(&Line::Run(RunLine {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data,
            classes: self.data.classes.clone(),
            image: [shape.channels, shape.height, shape.width],
            train_images: self.data.train.len(),
            test_images: self.data.test.len(),
            validation: self.config.validation_images > 0,
            weights: weights.sum(),
            steps: self.steps(),
            threads: rayon::current_num_threads(),
        }))?;
        if self.config.evaluate_every > 0 {
            let began = Instant::now();
            let knn = Some(self.knn(&self.state.encoder)?);
            let seconds = began.elapsed().as_secs_f64();
            let line = self.epoch_line(StepTime::default(), knn, seconds);
            metrics.write(&Line::Epoch(line))?;
        }
        Ok(())
    }

    /// Whether the step that makes `step` steps done leaves a line and measures what costs time.
    fn sampled(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.log_every)
    }

    /// One step, in MoCo's order: momentum update, keys, loss against the old queue, optimiser,
    /// enqueue.
    ///
    /// Away from the CPU the host only puts the work on the device's stream. It waits where a line is
    /// due, and in the step after it, which is timed because it measures nothing.
    fn step(&mut self) -> Result<(Option<StepLine>, Option<Timed>)> {
        let (step, batch) = (self.state.step, self.config.batch);
        let sampled = self.sampled(step + 1);
        let on_cpu = self.device.is_cpu();
        let counts = on_cpu || !sampled || self.config.log_every == 1;
        let waits = sampled || step > 0 && self.sampled(step);
        let device = self.device.clone();
        let now = || -> Result<Instant> {
            if waits {
                device.synchronize()?;
            }
            Ok(Instant::now())
        };
        let began = now()?;
        let epoch = step / self.steps_per_epoch;
        if self.order.0 != epoch {
            self.order = (
                epoch,
                augment::order(self.config.seed, epoch, self.data.train.len()),
            );
        }
        let first = (step % self.steps_per_epoch) as usize * batch;
        let numbers = &self.order.1[first..first + batch];
        let labels: Vec<u32> = numbers.iter().map(|&n| self.data.train.labels[n]).collect();
        let view = |view| {
            let key = ViewKey {
                seed: self.config.seed,
                epoch,
                view,
            };
            let (augment, normalisation) = (&self.config.augment, &self.normalisation);
            augment::views(&self.data.train, numbers, key, augment, normalisation)
        };

        let State {
            encoder,
            momentum_encoder,
            optimiser,
            queue,
            ..
        } = &mut self.state;
        momentum_encoder.follow(encoder, self.config.momentum)?;
        let keys = momentum_encoder.embed(&view(1)?, Mode::Inference)?;
        let queries = encoder.embed(&view(0)?, Mode::Training)?;

        let labels = Tensor::from_vec(labels, batch, &self.device)?;
        let loss_began = now()?;
        let warm_up = epoch < self.config.warm_up_epochs;
        self.loss
            .set_config(loss_settings(&self.loss_config, warm_up, sampled));
        let draws = Draws::seeded(self.config.seed, step)?;
        let loss = self
            .loss
            .forward_with_labels(&queries, &keys, &labels, queue, &draws)?;
        let loss_seconds = (now()? - loss_began).as_secs_f64();

        let gradients = loss.backward()?;
        let steps = self.config.epochs * self.steps_per_epoch;
        let (warm_up_steps, highest) = (
            self.config.learning_rate_warm_up_steps,
            self.config.learning_rate,
        );
        let rate = learning_rate(step, steps, warm_up_steps, highest);
        optimiser.step(
            encoder.weights(),
            &gradients,
            step,
            rate,
            self.config.weight_decay,
        )?;
        queue.enqueue(&keys, Some(&labels))?;
        self.state.step += 1;
        let step_seconds = (now()? - began).as_secs_f64();
        let timed = (on_cpu || waits && counts).then_some(Timed {
            step: step_seconds,
            loss: loss_seconds,
        });
        if !(on_cpu || sampled) {
            return Ok((None, timed));
        }

        self.state.queue.check()?;
        let output = self.loss.output()?;
        let loss = f64::from(output.loss()?);
        self.state.means.add(loss, &output.metrics);
        let line = StepLine {
            step: self.state.step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            loss,
            proxy_accuracy: output.metrics.proxy_accuracy,
            proxy_accuracy_with_synthetic: output.metrics.proxy_accuracy_with_synthetic,
            alignment: output.metrics.alignment,
            uniformity: output.metrics.uniformity,
            learning_rate: rate,
            images_per_second: batch as f64 / step_seconds,
            loss_seconds,
            step_seconds,
        };
        Ok((Some(line), timed))
    }

    fn epoch_line(&self, time: StepTime, knn: Option<f64>, evaluation: f64) -> EpochLine {
        let means = &self.state.means;
        let by_rank = means
            .matching_probability
            .iter()
            .map(|mean| mean.get().unwrap_or(0.0));
        let by_rank: Vec<f64> = by_rank.collect();
        let epoch = self.state.step / self.steps_per_epoch;
        let images = time.steps * self.config.batch as u64;
        EpochLine {
            step: self.state.step,
            epoch,
            warm_up: epoch > 0 && epoch <= self.config.warm_up_epochs,
            loss: means.loss.get(),
            proxy_accuracy: means.proxy_accuracy.get(),
            proxy_accuracy_with_synthetic: means.proxy_accuracy_with_synthetic.get(),
            alignment: means.alignment.get(),
            uniformity: means.uniformity.get(),
            matching_probability: (!by_rank.is_empty()).then_some(by_rank),
            same_label_share: means.same_label_share.get(),
            mixed_harder: means.mixed_harder.get(),
            query_mixed_harder: means.query_mixed_harder.get(),
            knn,
            seconds: time.total,
            loss_seconds: time.loss_seconds(),
            images_per_second: if images > 0 {
                images as f64 / time.total
            } else {
                0.0
            },
            evaluation_seconds: evaluation,
        }
    }

    fn knn(&self, encoder: &Encoder) -> Result<f64> {
        let bank = Features::encoded(encoder, &self.data.train, &self.normalisation)?;
        let test = Features::encoded(encoder, &self.data.test, &self.normalisation)?;
        Ok(evaluate::knn(&bank, &test))
    }

    fn final_evaluation(&self, progress: &Progress) -> Result<ResultLine> {
        let began = Instant::now();
        progress.note("evaluating");
        let Dataset { train, test, .. } = &self.data;
        let shape = train.shape;
        let untrained = Encoder::new(
            self.encoder_kind,
            shape,
            self.config.embedding,
            self.config.seed,
            &self.device,
        )?;
        let score = |bank: &Features<'_>, test: &Features<'_>| {
            let nearest = evaluate::nearest(bank, test);
            let knn = evaluate::vote(&nearest, bank, test);
            (nearest, knn, evaluate::linear_probe(bank, test))
        };
        let encoded = |encoder: &Encoder| {
            let bank = Features::encoded(encoder, train, &self.normalisation)?;
            let test = Features::encoded(encoder, test, &self.normalisation)?;
            Ok::<_, Error>(score(&bank, &test))
        };
        let (_, knn_untrained, linear_probe_untrained) = encoded(&untrained)?;
        let (raw, knn_raw, linear_probe_raw) = score(&Features::raw(train), &Features::raw(test));
        let (nearest, knn, linear_probe) = encoded(&self.state.encoder)?;
        crate::neighbours::save(&self.folder.neighbours(), &self.data, &nearest, &raw)?;
        Ok(ResultLine {
            step: self.state.step,
            epoch: self.config.epochs,
            knn,
            knn_raw,
            knn_untrained,
            linear_probe,
            linear_probe_raw,
            linear_probe_untrained,
            bank_images: train.len(),
            test_images: test.len(),
            evaluation_seconds: began.elapsed().as_secs_f64(),
        })
    }
}

/// Those of one step. Without synthetics the hardest are ranked only where they are measured: they
/// change no bit of the loss.
fn loss_settings(full: &hardmix::Config, warm_up: bool, sampled: bool) -> hardmix::Config {
    let settings = if warm_up {
        full.warm_up()
    } else {
        full.clone()
    };
    let measured = settings
        .with_uniformity(sampled)
        .with_matching_probability(sampled);
    if sampled || measured.mixed() + measured.query_mixed() > 0 {
        return measured;
    }
    let unranked = measured.clone().with_negatives(0, 0, 0);
    unranked.unwrap_or(measured)
}

/// `hardmix train`: trains or resumes, and prints where the run is and what it came to.
///
/// # Errors
/// As for [`train`].
pub fn run(args: &crate::flags::TrainArgs, interrupt: &AtomicBool) -> Result<()> {
    let (run, summary) = match &args.resume {
        Some(run) => (run.clone(), resume(run, interrupt)?),
        None => {
            let config = args.settings.resolve()?;
            let run = args.run.clone().unwrap_or_else(free_folder);
            let summary = train(&config, &run, interrupt)?;
            (run, summary)
        }
    };
    let folder = RunFolder::new(run);
    if let (Some(seconds), Some(share)) = (summary.time.step_seconds(), summary.time.loss_share()) {
        let (milliseconds, percent) = (1e3 * seconds, 1e2 * share);
        println!("{milliseconds:.2} ms a step, {percent:.1} % of it in the loss");
    }
    match summary.result {
        Some(result) => {
            let line = |name: &str, trained: f64, raw: f64, untrained: f64| {
                println!("{name:<24}{trained:>9.4}{raw:>12.4}{untrained:>19.4}");
            };
            println!(
                "{:<24}{:>9}{:>12}{:>19}",
                "accuracy", "trained", "raw pixels", "untrained encoder"
            );
            line(
                "20 nearest neighbours",
                result.knn,
                result.knn_raw,
                result.knn_untrained,
            );
            let (raw, untrained) = (result.linear_probe_raw, result.linear_probe_untrained);
            line("linear probe", result.linear_probe, raw, untrained);
            let (test, bank) = (result.test_images, result.bank_images);
            println!("{test} images classified by {bank} labelled ones");
            println!("report: {}", folder.report().display());
        }
        None => println!(
            "ended after {} steps; go on with: hardmix train --resume {}",
            summary.steps,
            folder.root().display()
        ),
    }
    Ok(())
}

/// The first of runs/001, runs/002, … that is not there.
fn free_folder() -> PathBuf {
    let name = |number| PathBuf::from(format!("runs/{number:03}"));
    (1..)
        .map(name)
        .find(|path| !path.exists())
        .expect("numbers do not end")
}
