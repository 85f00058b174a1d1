//! `hardmix compare`: MoCo against MoCHi over paired seeds.
//!
//! The two runs of a pair share everything but the synthetic negatives: seed, data order, views and
//! initial weights. What differs between them is the method, and the difference is taken pair by
//! pair.

mod comparison;
mod page;
mod table;

use std::fs;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

pub use comparison::{Comparison, Cost, Figures, Pair, Verdict};

use crate::checkpoint::replace;
use crate::config::{Method, TrainConfig};
use crate::error::{Error, Result};
use crate::flags::Settings;
use crate::report::Run;
use crate::run_folder::RunFolder;
use crate::train::train_or_resume;

/// More is a seed taken for a count.
const MOST_PAIRS: u64 = 1000;

/// The flags of `hardmix compare`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct CompareArgs {
    /// How many pairs, from the settings' seed on; or the seeds themselves, as in 3,5,8
    #[arg(long, value_name = "COUNT|LIST", default_value = "5")]
    pub seeds: Seeds,
    /// The folder to leave behind; runs in it that ended under the same settings are reused
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    pub run: PathBuf,
    /// The settings that all runs share
    #[command(flatten)]
    pub settings: Settings,
}

/// The seeds of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// So many, from the settings' seed on.
    Count(u64),
    /// These.
    List(Vec<u64>),
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u64>();
        if !text.contains(',') {
            return match number(text) {
                Ok(0) => Err("at least one pair is needed".into()),
                Ok(count) if count > MOST_PAIRS => Err(format!(
                    "at most {MOST_PAIRS} pairs; list a seed as in {count},"
                )),
                Ok(count) => Ok(Seeds::Count(count)),
                Err(error) => Err(format!("neither a count nor a list of seeds: {error}")),
            };
        }
        // A trailing comma makes a list of a single seed.
        let listed = text
            .strip_suffix(',')
            .unwrap_or(text)
            .split(',')
            .map(number);
        let listed: Vec<u64> = listed
            .collect::<Result<_, ParseIntError>>()
            .map_err(|error| format!("not a list of seeds: {error}"))?;
        let repeated = listed
            .iter()
            .enumerate()
            .find(|(at, seed)| listed[..*at].contains(seed));
        match repeated {
            Some((_, seed)) => Err(format!(
                "seed {seed} is listed twice; pairs must be different"
            )),
            None => Ok(Seeds::List(listed)),
        }
    }
}

impl Seeds {
    fn resolve(&self, first: u64) -> Vec<u64> {
        match self {
            Seeds::Count(count) => (0..*count).map(|i| first.wrapping_add(i)).collect(),
            Seeds::List(seeds) => seeds.clone(),
        }
    }
}

/// Trains the pairs that are missing, then prints the table and writes `compare.json` and
/// `compare.html`; on Ctrl-C, of the pairs that are there.
///
/// # Errors
/// [`Error::Setting`] for a seed that is none and for settings under which nothing would be mixed,
/// [`Error::ConfigFile`] for a run in the folder under other settings, and as for
/// [`train_or_resume`] and [`Run::read`].
pub fn run(args: &CompareArgs, interrupt: &AtomicBool) -> Result<()> {
    let config = check(args.settings.resolve()?.absolute()?)?;
    let seeds = args.seeds.resolve(config.seed);
    // Before the first is trained: the last pair's turn may come days later.
    for &seed in &seeds {
        let config = config.clone();
        TrainConfig { seed, ..config }.validate()?;
    }
    let mut pairs = Vec::new();
    for (place, &seed) in seeds.iter().enumerate() {
        // Every other pair the other way round: a machine that grows slower or faster meanwhile
        // then favours neither side.
        let mut sides = [Method::Moco, Method::Mochi];
        if place % 2 == 1 {
            sides.reverse();
        }
        let mut ended = Vec::new();
        for method in sides {
            let config = TrainConfig {
                method,
                seed,
                ..config.clone()
            };
            let folder = args.run.join(folder_name(method, seed));
            eprintln!(
                "pair {} of {}: {}",
                place + 1,
                seeds.len(),
                folder.display()
            );
            match complete(&config, &folder, interrupt)? {
                Some(run) => ended.push((method, run)),
                None => break,
            }
        }
        ended.sort_by_key(|(method, _)| *method != Method::Moco);
        match <[_; 2]>::try_from(ended) {
            Ok([(_, moco), (_, mochi)]) => pairs.push(Pair::new(seed, &moco, &mochi)?),
            Err(_) => break,
        }
    }
    if pairs.len() < seeds.len() {
        eprintln!("interrupted; the same command goes on from here");
    }
    if pairs.is_empty() {
        return Ok(());
    }
    let comparison = Comparison::new(config, seeds, pairs);
    print!("{}", table::table(&comparison));
    for path in write(&comparison, &args.run)? {
        println!("{}", path.display());
    }
    Ok(())
}

/// Writes `compare.json` and `compare.html` into the folder and returns them.
///
/// # Errors
/// [`Error::Io`] where they cannot be written.
pub fn write(comparison: &Comparison, folder: &Path) -> Result<[PathBuf; 2]> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let [json, html] = [folder.join("compare.json"), folder.join("compare.html")];
    replace(&json, comparison.to_json().as_bytes())?;
    replace(&html, page::page(comparison).as_bytes())?;
    Ok([json, html])
}

fn folder_name(method: Method, seed: u64) -> String {
    let method = if method == Method::Moco {
        "moco"
    } else {
        "mochi"
    };
    format!("seed-{seed}-{method}")
}

/// Refuses settings under which both sides would be the same method.
fn check(config: TrainConfig) -> Result<TrainConfig> {
    let fail = |setting, value: String, expected: &str| {
        Err(Error::Setting {
            setting,
            value,
            expected: expected.into(),
        })
    };
    if config.method != Method::Mochi {
        let method = format!("{:?}", config.method).to_lowercase();
        return fail(
            "method",
            method,
            "mochi: compare sets MoCo against it by itself",
        );
    }
    if config.mixed + config.query_mixed == 0 {
        return fail(
            "mixed",
            "0, as is query_mixed".into(),
            "a synthetic negative to compare",
        );
    }
    if config.warm_up_epochs >= config.epochs {
        let value = config.warm_up_epochs.to_string();
        let expected = format!(
            "fewer than the {} epochs: else nothing is mixed",
            config.epochs
        );
        return fail("warm_up_epochs", value, &expected);
    }
    Ok(config)
}

/// The ended run of these settings in this folder: the one that is there, or resumed, or trained
/// now. None where it was interrupted.
fn complete(config: &TrainConfig, folder: &Path, interrupt: &AtomicBool) -> Result<Option<Run>> {
    if RunFolder::new(folder).config().exists() {
        let run = Run::read(folder)?;
        same_settings(config, &run)?;
        if run.result.is_some() {
            return Ok(Some(run));
        }
    }
    train_or_resume(config, folder, interrupt)?;
    let run = Run::read(folder)?;
    Ok(run.result.is_some().then_some(run))
}

/// Refuses to mix runs of different settings, and names the first that differs.
fn same_settings(wanted: &TrainConfig, run: &Run) -> Result<()> {
    if *wanted == run.config {
        return Ok(());
    }
    let table = |config: &TrainConfig| toml::Table::try_from(config).unwrap_or_default();
    let (wanted, found) = (table(wanted), table(&run.config));
    let shown = |value: Option<&toml::Value>| value.map_or("absent".into(), |v| v.to_string());
    let differs = wanted
        .keys()
        .chain(found.keys())
        .find(|key| wanted.get(*key) != found.get(*key));
    let key = differs.map_or("a setting", |key| key.as_str());
    Err(Error::ConfigFile {
        path: run.folder.config(),
        reason: format!(
            "{key} is {}, and this comparison has {}; name another folder with --run",
            shown(found.get(key)),
            shown(wanted.get(key))
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_count_or_a_list() {
        assert_eq!("3".parse(), Ok(Seeds::Count(3)));
        assert_eq!("3,5, 8".parse(), Ok(Seeds::List(vec![3, 5, 8])));
        assert_eq!("7,".parse(), Ok(Seeds::List(vec![7])));
        assert_eq!(Seeds::Count(3).resolve(10), [10, 11, 12]);
        for wrong in ["0", "1001", "", ",", "-1", "1,x", "4,4", "1.5"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn two_equal_sides_are_refused() {
        let refused = |config: TrainConfig| match check(config) {
            Err(Error::Setting { setting, .. }) => setting,
            other => panic!("{other:?}"),
        };
        let config = TrainConfig::default;
        assert!(check(config()).is_ok());
        assert_eq!(
            refused(TrainConfig {
                method: Method::Moco,
                ..config()
            }),
            "method"
        );
        assert_eq!(
            refused(TrainConfig {
                mixed: 0,
                query_mixed: 0,
                ..config()
            }),
            "mixed"
        );
        assert_eq!(
            refused(TrainConfig {
                warm_up_epochs: 12,
                epochs: 12,
                ..config()
            }),
            "warm_up_epochs"
        );
    }
}
