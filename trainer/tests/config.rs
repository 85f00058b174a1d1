//! Settings: the file, the flags on top, and everything that is refused.

use std::fs;

use clap::Parser;
use hardmix_trainer::config::{Method, TrainConfig};
use hardmix_trainer::flags::TrainArgs;
use tempfile::tempdir;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: TrainArgs,
}

fn resolve(line: &str) -> Result<TrainConfig, String> {
    let words = std::iter::once("train").chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    cli.args
        .settings
        .resolve()
        .map_err(|error| error.to_string())
}

fn read(text: &str) -> Result<TrainConfig, String> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    fs::write(&path, text).unwrap();
    let read = TrainConfig::read(&path).map_err(|error| error.to_string());
    read.map_err(|error| {
        assert!(
            error.contains("settings.toml") || !error.contains("TOML"),
            "{error}"
        );
        error
    })
}

#[test]
fn what_is_written_is_read_again() {
    let config = TrainConfig {
        data: Some("somewhere".into()),
        seed: 7,
        learning_rate: 0.1 + 0.2,
        ..TrainConfig::default()
    };
    assert_eq!(read(&config.to_toml().unwrap()).unwrap(), config);
    assert_eq!(read("").unwrap(), TrainConfig::default());
    assert_eq!(read("[augment]\nflip = 0.0\n").unwrap().augment.flip, 0.0);
}

#[test]
fn flags_win_over_the_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    fs::write(&path, "seed = 3\nepochs = 5\nmethod = \"oracle\"\n").unwrap();
    let config = resolve(&format!("--config {} --seed 4 --hardest 9", path.display())).unwrap();
    assert_eq!((config.seed, config.epochs, config.hardest), (4, 5, 9));
    assert_eq!(config.method, Method::Oracle);
    assert_eq!(resolve("").unwrap(), TrainConfig::default());
    assert!(
        resolve("--resume a --seed 1")
            .unwrap_err()
            .contains("cannot be used with")
    );
}

/// The file and the flags must be valid together, not the file by itself.
#[test]
fn flags_correct_the_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    let with = |text: &str, flags: &str| {
        fs::write(&path, text).unwrap();
        resolve(&format!("--config {} {flags}", path.display()))
    };
    let config = with("queue = 64\n", "--hardest 32").unwrap();
    assert_eq!((config.queue, config.hardest), (64, 32));
    let config = with("hardest = 5000\n", "--queue 8192").unwrap();
    assert_eq!((config.queue, config.hardest), (8192, 5000));
    let error = with("queue = 64\n", "").unwrap_err();
    assert!(
        error.starts_with("hardest is 128; expected at most"),
        "{error}"
    );
    let error = with("queue = 64\n", "--hardest 65").unwrap_err();
    assert!(
        error.starts_with("hardest is 65; expected at most"),
        "{error}"
    );
}

#[test]
fn files_that_are_no_settings_are_errors() {
    for (text, reason) in [
        ("sed = 1", "unknown field `sed`"),
        ("[augment]\nflop = 1", "unknown field `flop`"),
        ("seed = ", "line 1"),
        ("seed = \"x\"", "invalid type"),
        ("method = \"simclr\"", "unknown variant"),
        ("seed = -1", "invalid value"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(reason), "{error}");
    }
    let error = resolve("--config no-such-file.toml").unwrap_err();
    assert!(
        error.starts_with("cannot read no-such-file.toml"),
        "{error}"
    );
}

#[test]
fn settings_outside_their_domain_are_errors_by_name() {
    for (text, reason) in [
        ("batch = 0", "batch is 0; expected at least 1"),
        ("queue = 0", "queue is 0"),
        ("epochs = 0", "epochs is 0"),
        ("log_every = 0", "log_every is 0"),
        ("checkpoint_every = 0", "checkpoint_every is 0"),
        ("embedding = 0", "embedding is 0"),
        (
            "embedding = 65537",
            "embedding is 65537; expected at most 65536",
        ),
        (
            "embedding = 9223372036854775807",
            "embedding is 9223372036854775807; expected at most 65536",
        ),
        ("train_images = 0", "train_images is 0"),
        (
            "epochs = 1000001",
            "epochs is 1000001; expected at most 1000000",
        ),
        ("image_size = 4", "image_size is 4; expected 8 to 1024"),
        (
            "hardest = 4097",
            "hardest is 4097; expected at most the queue's 4096 rows",
        ),
        ("momentum = 1.5", "momentum is 1.5; expected 0 to 1"),
        ("momentum = nan", "momentum is NaN"),
        (
            "learning_rate = 0.0",
            "learning_rate is 0; expected a positive",
        ),
        ("learning_rate = inf", "learning_rate is inf"),
        ("weight_decay = -0.1", "weight_decay is -0.1"),
        ("temperature = 0.0", "temperature is 0"),
        ("temperature = nan", "temperature is NaN"),
        ("hardest = 0", "hardest is 0"),
        ("augment = { flip = 2.0 }", "augment.flip is 2"),
        ("augment = { crop_scale = 0.0 }", "augment.crop_scale is 0"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(reason), "{error}");
    }
    let error = resolve("--seed 9223372036854775808").unwrap_err();
    assert!(error.starts_with("seed is 9223372036854775808"), "{error}");
}
