//! The comparison of runs that are there, from their folders to its table, JSON and page.

use std::fs;
use std::path::Path;

use hardmix_trainer::compare::{self, CompareArgs, Comparison, Pair, Seeds, Verdict};
use hardmix_trainer::config::TrainConfig;
use hardmix_trainer::error::Error;
use hardmix_trainer::flags::Settings;
use hardmix_trainer::report::Run;
use tempfile::TempDir;

/// An ended run of four epochs, the first of them warm-up, with this accuracy and these
/// milliseconds in the loss after warm-up.
fn run(folder: &Path, method: &str, seed: u64, knn: f64, loss_ms: f64) {
    fs::create_dir_all(folder).unwrap();
    let config = format!("method = \"{method}\"\nseed = {seed}\nepochs = 4\nwarm_up_epochs = 1\n");
    fs::write(folder.join("config.toml"), config).unwrap();
    let mut lines = Vec::new();
    for epoch in 1..=4u64 {
        let warm_up = epoch == 1;
        // A slow warm-up must not count.
        let loss = if warm_up { 9.0 } else { loss_ms / 1e3 };
        for step in 0..4u64 {
            let at = (epoch - 1) as f64 + step as f64 / 4.0;
            lines.push(format!(
                r#"{{"kind":"step","step":{},"epoch":{at},"loss":5.5,"proxy_accuracy":0.5,"proxy_accuracy_with_synthetic":0.25,"alignment":0.5,"uniformity":-2.5,"learning_rate":0.004,"images_per_second":2000.0,"loss_seconds":{loss},"step_seconds":{}}}"#,
                4 * (epoch - 1) + step + 1,
                loss + 0.04
            ));
        }
        // A run resumed in its third epoch has timed the second half of it.
        let timed = if epoch == 3 { 0.5 } else { 1.0 };
        let seconds = 100.0 * timed * (loss + 0.04);
        lines.push(format!(
            r#"{{"kind":"epoch","step":{},"epoch":{epoch},"warm_up":{warm_up},"knn":{},"seconds":{seconds},"loss_seconds":{},"images_per_second":{},"evaluation_seconds":0.5}}"#,
            4 * epoch,
            knn - 0.01 * (4 - epoch) as f64,
            100.0 * timed * loss,
            12800.0 * timed / seconds
        ));
    }
    lines.push(format!(
        r#"{{"kind":"result","step":16,"epoch":4,"knn":{knn},"knn_raw":0.811,"knn_untrained":0.712,"linear_probe":0.85,"linear_probe_raw":0.829,"linear_probe_untrained":0.774,"bank_images":4000,"test_images":2000,"evaluation_seconds":4.0}}"#
    ));
    fs::write(folder.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
}

/// Pairs of seeds 0, 1, … with these differences; MoCo's loss takes 10 ms, MoCHi's 14.
fn pairs(root: &Path, differences: &[f64]) {
    for (seed, difference) in differences.iter().enumerate() {
        let moco = 0.80 + 0.01 * seed as f64;
        run(
            &root.join(format!("seed-{seed}-moco")),
            "moco",
            seed as u64,
            moco,
            10.0,
        );
        let mochi = root.join(format!("seed-{seed}-mochi"));
        run(&mochi, "mochi", seed as u64, moco + difference, 14.0);
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        epochs: 4,
        warm_up_epochs: 1,
        ..TrainConfig::default()
    }
}

fn arguments(root: &Path, seeds: u64) -> CompareArgs {
    let settings = Settings {
        epochs: Some(4),
        warm_up_epochs: Some(1),
        ..Settings::default()
    };
    CompareArgs {
        seeds: Seeds::Count(seeds),
        run: root.into(),
        settings,
    }
}

fn read(root: &Path, seeds: u64) -> Comparison {
    let one = |seed| {
        let side = |method| Run::read(&root.join(format!("seed-{seed}-{method}"))).unwrap();
        Pair::new(seed, &side("moco"), &side("mochi")).unwrap()
    };
    Comparison::new(
        config(),
        (0..seeds).collect(),
        (0..seeds).map(one).collect(),
    )
}

#[test]
fn accuracies_differences_and_overheads() {
    let folder = TempDir::new().unwrap();
    pairs(folder.path(), &[0.010, 0.012, 0.008, 0.011, 0.009]);
    let comparison = read(folder.path(), 5);
    assert_eq!(comparison.verdict, Verdict::MochiAbove);
    assert!((comparison.knn.moco - 0.82).abs() < 1e-12);
    // 0.80, 0.81, … 0.84: the standard deviation of five values 0.01 apart is 0.01 √2.5.
    assert!((comparison.knn.moco_deviation.unwrap() - 0.01 * 2.5f64.sqrt()).abs() < 1e-12);
    // Deviation 0.001 √2.5, t(0.975, 4) = 2.776445105: ± 0.00196324.
    let difference = comparison.knn.difference;
    assert!((difference.mean - 0.010).abs() < 1e-12);
    assert!((difference.low.unwrap() - 0.008_036_757).abs() < 1e-8);
    assert!((difference.high.unwrap() - 0.011_963_243).abs() < 1e-8);
    // Of 100 steps, loss 14 against 10 ms and the whole 54 against 50; warm-up is left out.
    assert!((comparison.loss_seconds.overhead_percent.mean - 40.0).abs() < 1e-9);
    assert!((comparison.epoch_seconds.overhead_percent.mean - 8.0).abs() < 1e-9);
    assert!((comparison.epoch_seconds.moco - 5.0).abs() < 1e-9);
    assert!((comparison.loss_seconds.mochi - 1.4).abs() < 1e-9);
}

#[test]
fn finished_runs_are_reused_and_the_files_written() {
    let folder = TempDir::new().unwrap();
    pairs(folder.path(), &[0.010, -0.008, 0.004]);
    compare::run(&arguments(folder.path(), 3), &false.into()).unwrap();
    let json = fs::read_to_string(folder.path().join("compare.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["verdict"], "nothing_shown");
    assert_eq!(json["pairs"].as_array().unwrap().len(), 3);
    assert_eq!(json["settings"]["method"], "mochi");
    let page = fs::read_to_string(folder.path().join("compare.html")).unwrap();
    let titles = [
        "Paired differences",
        "Accuracy by seed",
        "Accuracy by epoch",
        "Time in the loss",
    ];
    for title in titles {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(page.contains("Nothing is shown") && page.contains("seed-2-mochi/report.html"));
    for outside in ["http:", "https:", "url(", "<script", "<link", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn runs_under_other_settings_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    pairs(folder.path(), &[0.01, 0.02, 0.03]);
    let mut arguments = arguments(folder.path(), 3);
    arguments.settings.temperature = Some(0.1);
    match compare::run(&arguments, &false.into()) {
        Err(Error::ConfigFile { path, reason }) => {
            assert!(path.ends_with("seed-0-moco/config.toml"));
            assert!(reason.starts_with("temperature is 0.2"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_seed_that_is_none_is_refused_before_anything_is_trained() {
    let folder = TempDir::new().unwrap();
    let mut arguments = arguments(folder.path(), 2);
    let first_refused = i64::MAX as u64 + 1;
    for (first, seeds) in [
        (0, Seeds::List(vec![0, first_refused])),
        (first_refused - 1, Seeds::Count(2)),
    ] {
        arguments.seeds = seeds;
        arguments.settings.seed = Some(first);
        // Interrupted: what is trained all the same ends at once.
        match compare::run(&arguments, &true.into()) {
            Err(Error::Setting {
                setting: "seed",
                value,
                ..
            }) => assert_eq!(value, first_refused.to_string()),
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_run_that_has_not_ended_makes_no_pair() {
    let folder = TempDir::new().unwrap();
    pairs(folder.path(), &[0.01]);
    let unfinished = folder.path().join("seed-0-moco");
    let text = fs::read_to_string(unfinished.join("metrics.jsonl")).unwrap();
    let result = text.find(r#"{"kind":"result""#).unwrap();
    fs::write(unfinished.join("metrics.jsonl"), &text[..result]).unwrap();
    let [moco, mochi] = ["moco", "mochi"]
        .map(|method| Run::read(&folder.path().join(format!("seed-0-{method}"))).unwrap());
    assert!(matches!(
        Pair::new(0, &moco, &mochi),
        Err(Error::RunFolder { .. })
    ));
}
