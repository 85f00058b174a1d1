//! Training on the GPU: on softgpu, by `tools/softgpu --libraries`, or on the machine's own.
#![cfg(feature = "candle-cuda")]

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use hardmix_trainer::config::{EncoderKind, TrainConfig};
use hardmix_trainer::device::Device;
use hardmix_trainer::metrics::{self, Line, StepLine};
use hardmix_trainer::run_folder::RunFolder;
use hardmix_trainer::train::{resume, train};

/// A few steps on a few images, each with a line.
fn config(device: Device, encoder: EncoderKind) -> TrainConfig {
    TrainConfig {
        train_images: Some(20),
        validation_images: 4,
        encoder: Some(encoder),
        embedding: 16,
        batch: 4,
        epochs: 1,
        queue: 32,
        hardest: 8,
        mixed: 4,
        query_mixed: 2,
        warm_up_epochs: 0,
        log_every: 1,
        evaluate_every: 0,
        checkpoint_every: 2,
        device,
        ..TrainConfig::default()
    }
}

fn steps(run: &Path) -> Vec<StepLine> {
    let lines = metrics::read(&run.join("metrics.jsonl")).expect("metrics");
    let step = |line| match line {
        Line::Step(line) => Some(line),
        _ => None,
    };
    lines.into_iter().filter_map(step).collect()
}

#[test]
fn training_on_the_gpu_follows_training_on_the_cpu() {
    let folder = tempfile::tempdir().expect("a folder");
    for encoder in [EncoderKind::Conv, EncoderKind::Resnet] {
        let run = |device: Device| {
            let run = folder.path().join(format!("{device:?}{encoder:?}"));
            train(&config(device, encoder), &run, &AtomicBool::new(false)).expect("a run");
            steps(&run)
        };
        let (cpu, gpu) = (run(Device::Cpu), run(Device::Cuda));
        assert_eq!((cpu.len(), gpu.len()), (4, 4));
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            // The rate is so low at first that a difference of rounding stays one: some hundred
            // roundings of f32.
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(1.0);
            assert!(near(cpu.loss, gpu.loss), "{encoder:?}: {cpu:?}, {gpu:?}");
            assert!(near(cpu.alignment, gpu.alignment), "{cpu:?}, {gpu:?}");
        }
    }
}

#[test]
fn a_run_on_the_gpu_goes_on_from_its_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let config = config(Device::Cuda, EncoderKind::Conv);
    train(&config, &whole, &AtomicBool::new(false)).expect("a run");
    // Interrupted before the first step: a checkpoint and no more.
    train(&config, &cut, &AtomicBool::new(true)).expect("a run");
    let checkpoint = |run: &Path, step| RunFolder::new(run).checkpoint(step);
    fs::copy(checkpoint(&whole, 2), checkpoint(&cut, 2)).expect("a checkpoint");
    resume(&cut, &AtomicBool::new(false)).expect("the rest of the run");
    let bytes = |run: &Path| fs::read(checkpoint(run, 4)).expect("the last checkpoint");
    assert_eq!(bytes(&whole), bytes(&cut));
}
