//! Planted defects: kernels with one thing wrong each. Every one must be found, by the checker that
//! it belongs to, and must not be found with that checker switched off; the controls, right kernels
//! with no barrier to spare, must be clean. The last line counts them.
//!
//! Each run is a process of its own, for errors are sticky: this program starts itself with a case's
//! name. Arguments are parts of names: only matching cases run.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod host;
mod table;

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use case::{Case, Expected, kind_of};
use common::shapes::Failure;
use common::{Gpu, full};
use softgpu::check::Check;
use softgpu::fault::Kind;
use table::{HIDDEN, cases};

/// Far beyond any case here, none of which has to spin for long before the step limit.
const STEP_LIMIT: u64 = 1 << 24;
/// What a run with the step limit switched off is given before it counts as not found.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_WITHOUT_LIMIT: Duration = Duration::from_secs(2);
/// What a child's last line starts with.
const MARK: &str = "OUTCOME ";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    if let [flag, name, off] = arguments.as_slice()
        && flag == "--case"
    {
        return child(name, off == "off");
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    parent(&filters)
}

/// Runs one case and says how it ended, on the last line.
fn child(name: &str, off: bool) -> ExitCode {
    let case = cases()
        .into_iter()
        .find(|case| case.name == name)
        .expect("a case of that name");
    let gpu = Gpu::load(case.file).expect("the parent has compiled the kernels");
    if let Some(schedule) = std::env::var("SOFTGPU_TESTS_SCHEDULE")
        .ok()
        .and_then(|i| i.parse::<usize>().ok())
    {
        gpu.follow(common::schedules()[schedule]);
    }
    softgpu::set_step_limit(STEP_LIMIT);
    if let (true, Expected::Fault(_, checks)) = (off, &case.expected) {
        for check in checks {
            softgpu::set_check(*check, false);
        }
    }
    let outcome = (case.run)(&gpu, case.kernel);
    let report = softgpu::last_report();
    println!(
        "{MARK}{}",
        match (report.strip_prefix("softgpu: "), outcome) {
            (Some(report), _) => format!("fault {report}"),
            (None, Ok(_)) => "clean".to_owned(),
            (None, Err(Failure::Result(sentence))) => format!("wrong {sentence}"),
            (None, Err(Failure::Device(error))) => format!("error {error}"),
        }
    );
    // Dropping what a sticky error has left behind would only report it again.
    std::process::exit(0);
}

/// One process to run.
struct Run<'a> {
    case: &'a Case,
    architecture: &'static str,
    schedule: Option<usize>,
    off: bool,
}

impl Run<'_> {
    /// What is wrong with this run's end, if anything.
    fn complaint(&self) -> Option<String> {
        let said = self.outcome();
        let as_expected = match &self.case.expected {
            Expected::Fault(..) if self.is_hidden() => said == "clean",
            Expected::Fault(kinds, checks) => {
                // Under some schedules a consequence comes first.
                let consequences = match self.schedule {
                    Some(_) => checks.as_slice(),
                    None => &[],
                };
                let consequences = consequences.iter().filter_map(|check| kind_of(*check));
                let mut kinds: Vec<Kind> = kinds.iter().copied().chain(consequences).collect();
                if self.off {
                    // The misuse of an mbarrier ends a launch whatever is switched off.
                    kinds.retain(|kind| *kind != Kind::InvalidValue);
                }
                let found = said.strip_prefix("fault ").is_some_and(|report| {
                    kinds.iter().any(|kind| report.starts_with(kind.words()))
                });
                // A child that died says nothing.
                found != self.off && !said.starts_with("no outcome")
            }
            Expected::WrongResult => said.starts_with("wrong"),
            Expected::Clean => said == "clean",
        };
        (!as_expected).then(|| {
            let off = if self.off { ", checker off" } else { "" };
            let schedule = self
                .schedule
                .map_or(String::new(), |i| format!(", schedule {i}"));
            format!(
                "{} ({}{schedule}{off}): {said}",
                self.case.name, self.architecture
            )
        })
    }

    /// Whether the schedule gives no other result than a right kernel's.
    fn is_hidden(&self) -> bool {
        HIDDEN.iter().any(|(name, schedules)| {
            *name == self.case.name && self.schedule.is_some_and(|own| schedules.contains(&own))
        })
    }

    fn outcome(&self) -> String {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([
            "--case",
            self.case.name,
            if self.off { "off" } else { "on" },
        ]);
        command.env("SOFTGPU_ARCH", self.architecture);
        if let Some(schedule) = self.schedule {
            command.env("SOFTGPU_TESTS_SCHEDULE", schedule.to_string());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this program starts again");
        let endless = self.off
            && matches!(&self.case.expected, Expected::Fault(_, checks) if checks.contains(&Check::Steps));
        let patience = if endless {
            PATIENCE_WITHOUT_LIMIT
        } else {
            PATIENCE
        };
        let started = Instant::now();
        let status = loop {
            match child.try_wait().expect("the child's state") {
                Some(status) => break status,
                None if started.elapsed() > patience => {
                    // It may have ended just now.
                    let _ = child.kill();
                    let _ = child.wait();
                    return format!("still running after {patience:?}");
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let mut said = String::new();
        child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_string(&mut said)
            .expect("text");
        let last = said.lines().rev().find_map(|line| line.strip_prefix(MARK));
        last.map_or_else(|| format!("no outcome, {status}"), str::to_owned)
    }
}

fn parent(filters: &[&String]) -> ExitCode {
    let mut all = cases();
    if !filters.is_empty() {
        all.retain(|case| {
            filters
                .iter()
                .any(|filter| case.name.contains(filter.as_str()))
        });
    }
    let files: std::collections::BTreeSet<_> = all.iter().map(|case| case.file).collect();
    for file in files {
        if common::toolkit::image(file).is_none() {
            println!("planted defects: not looked for, there is no nvcc");
            return ExitCode::SUCCESS;
        }
    }
    let schedules = || {
        if full() {
            (0..6).map(Some).collect()
        } else {
            vec![None]
        }
    };
    let mut runs = Vec::new();
    for case in &all {
        for architecture in ["sm_80", "sm_90a"] {
            if case.file == "hopper" && architecture == "sm_80" {
                continue;
            }
            for schedule in schedules() {
                runs.push(Run {
                    case,
                    architecture,
                    schedule,
                    off: false,
                });
            }
            if matches!(&case.expected, Expected::Fault(_, checks) if !checks.is_empty()) {
                runs.push(Run {
                    case,
                    architecture,
                    schedule: None,
                    off: true,
                });
            }
        }
    }

    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(complaint) = run.complaint() {
                        complaints
                            .lock()
                            .expect("no panic")
                            .push((run.case.name, complaint));
                    }
                }
            });
        }
    });

    let mut complaints = complaints.into_inner().expect("no panic");
    complaints.sort();
    for (_, complaint) in &complaints {
        println!("{complaint}");
    }
    let count = |controls: bool| {
        let of_kind = all
            .iter()
            .filter(|case| (case.expected == Expected::Clean) == controls);
        let right = of_kind
            .clone()
            .filter(|case| !complaints.iter().any(|(name, _)| *name == case.name));
        (right.count(), of_kind.count())
    };
    let ((found, defects), (clean, controls)) = (count(false), count(true));
    println!("planted defects: {found} of {defects} found, {clean} of {controls} controls clean");
    if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
