//! On the CPU.

use std::path::Path;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use hardmix::{Draws, cpu};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, json};

use crate::USAGE;
use crate::common::{DIM, Features, Input, products, settings};

/// (K, B): the paper's ImageNet-1K, its ImageNet-100 queue, and a small batch.
const SHAPES: [(usize, usize); 3] = [(65_536, 256), (16_384, 256), (65_536, 32)];

pub fn criterion(criterion: &mut Criterion) {
    for features in Features::ALL {
        for (capacity, rows) in SHAPES {
            let input = Input::new(features, capacity, rows);
            let mut group = criterion.benchmark_group(format!(
                "step, {} features, K={capacity}, B={rows}",
                features.name()
            ));
            group
                .sample_size(10)
                .measurement_time(std::time::Duration::from_secs(2));
            group.bench_function("products", |bencher| bencher.iter(|| products(&input)));
            for (name, config) in settings() {
                let mut step = cpu::Step::new(config);
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    bencher.iter(|| loss(&mut step, &input));
                });
            }
        }
    }
    criterion.final_summary();
}

/// One step, with its loss to show that it did it.
fn loss(step: &mut cpu::Step, input: &Input) -> f32 {
    let draws = Draws::seeded(7, 0).expect("a step below the limit");
    let output = step
        .run(&input.batch(), &input.queue, &draws)
        .expect("a valid input");
    let loss = output.loss().expect("finite rows");
    step.recycle(output);
    loss
}

pub fn json_lines(mut arguments: impl Iterator<Item = String>) {
    let mut features = Features::ALL.to_vec();
    let mut shapes = SHAPES.to_vec();
    let mut only: Vec<String> = Vec::new();
    let mut rounds = 7;
    while let Some(argument) = arguments.next() {
        // Cargo's own, behind ours.
        if argument == "--bench" {
            continue;
        }
        let value = arguments.next().expect(USAGE);
        match argument.as_str() {
            "--features" => features.retain(|features| features.name() == value),
            "--shape" => {
                let (capacity, rows) = value.split_once(',').expect(USAGE);
                shapes = vec![(capacity.parse().expect(USAGE), rows.parse().expect(USAGE))];
            }
            "--only" => only.push(value),
            "--rounds" => rounds = value.parse().expect(USAGE),
            _ => panic!("{USAGE}"),
        }
    }
    for features in features {
        for &(capacity, rows) in &shapes {
            let input = Input::new(features, capacity, rows);
            println!("{}", interleaved(&input, &only, rounds));
        }
    }
}

fn interleaved(input: &Input, only: &[String], rounds: usize) -> serde_json::Value {
    let mut steps: Vec<_> = settings()
        .into_iter()
        .filter(|(name, _)| only.is_empty() || only.iter().any(|wanted| name.contains(wanted)))
        .map(|(name, config)| (name, cpu::Step::new(config), Vec::new()))
        .collect();
    let mut floor = Vec::new();
    let mut losses = Map::new();
    // The first round only warms up.
    for round in 0..=rounds {
        let started = Instant::now();
        products(input);
        let products = milliseconds(started);
        if round > 0 {
            floor.push(products);
        }
        for (name, step, times) in &mut steps {
            let started = Instant::now();
            let loss = loss(step, input);
            let time = milliseconds(started);
            if round > 0 {
                times.push(time);
            }
            losses.insert((*name).to_owned(), json!(loss));
        }
    }
    let times: Map<_, _> = steps
        .into_iter()
        .map(|(name, _, times)| (name.to_owned(), json!(times)))
        .collect();
    json!({
        "features": input.features.name(),
        "capacity": input.queue.capacity(),
        "rows": input.batch().rows(),
        "dim": DIM,
        "products": floor,
        "steps": times,
        "losses": losses,
    })
}

fn milliseconds(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

/// Writes the first input, for the scripts in benches/peers.
pub fn write(path: &str) {
    let (capacity, rows) = SHAPES[0];
    let input = Input::new(Features::Random, capacity, rows);
    let queue = input.queue.rows().to_f32();
    let bytes = |data: &[f32]| {
        data.iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let tensors = [
        ("queries", rows, bytes(&input.queries)),
        ("keys", rows, bytes(&input.keys)),
        ("queue", capacity, bytes(&queue)),
    ];
    let views = tensors.iter().map(|(name, count, data)| {
        (
            *name,
            TensorView::new(Dtype::F32, vec![*count, DIM], data).expect("whole rows"),
        )
    });
    safetensors::serialize_to_file(views, None, Path::new(path)).expect("a writable path");
}
