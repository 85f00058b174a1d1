//! What a case is, and what must be found in it.

use softgpu::check::Check;
use softgpu::fault::Kind;

use super::common::Gpu;
use super::common::shapes::Outcome;

/// One kernel in one shape.
pub struct Case {
    pub name: &'static str,
    pub file: &'static str,
    pub kernel: &'static str,
    pub expected: Expected,
    pub run: fn(&Gpu, &str) -> Outcome,
}

/// What a case must end in.
#[derive(PartialEq)]
pub enum Expected {
    /// A fault of one of these kinds, and none of them with these checks switched off.
    Fault(Vec<Kind>, Vec<Check>),
    /// No fault, and a result that is not the right one.
    WrongResult,
    /// The right result: a control.
    Clean,
}

impl Expected {
    /// Or a fault of another kind, which comes first under some schedules.
    pub fn or(self, kind: Kind) -> Self {
        match self {
            Self::Fault(mut kinds, checks) => {
                kinds.push(kind);
                Self::Fault(kinds, checks)
            }
            other => other,
        }
    }
}

/// A fault that `check` finds; what else sees its consequences, `others`, is switched off with it.
fn fault(kind: Kind, check: Check, others: &[Check]) -> Expected {
    Expected::Fault(vec![kind], [&[check], others].concat())
}

/// What a check reports.
pub fn kind_of(check: Check) -> Option<Kind> {
    Some(match check {
        Check::Bounds => Kind::OutOfBounds,
        Check::Alignment => Kind::Misaligned,
        Check::Freed => Kind::UseAfterFree,
        Check::Uninitialised => Kind::Uninitialised,
        Check::SharedRaces => Kind::SharedRace,
        Check::GlobalRaces => Kind::GlobalRace,
        Check::Barriers => Kind::DivergentBarrier,
        Check::AsyncCopies => Kind::AsyncCopy,
        Check::Proxies => Kind::MissingProxyFence,
        Check::Limits => Kind::LaunchLimit,
        Check::Steps => Kind::StepLimit,
        _ => return None,
    })
}

pub fn bounds(others: &[Check]) -> Expected {
    fault(Kind::OutOfBounds, Check::Bounds, others)
}

pub fn misaligned(others: &[Check]) -> Expected {
    fault(Kind::Misaligned, Check::Alignment, others)
}

pub fn freed() -> Expected {
    fault(Kind::UseAfterFree, Check::Freed, &[])
}

/// A block that ends while a peer may still use its shared memory.
pub fn left_early() -> Expected {
    fault(Kind::UseAfterFree, Check::Freed, &[])
}

pub fn unwritten() -> Expected {
    fault(Kind::Uninitialised, Check::Uninitialised, &[])
}

pub fn shared_race(others: &[Check]) -> Expected {
    fault(Kind::SharedRace, Check::SharedRaces, others)
}

/// A reader that does not wait for its writers, one of which may be its own block: where the reader
/// comes first, nothing is written.
pub fn global_race_or_unwritten() -> Expected {
    Expected::Fault(
        vec![Kind::GlobalRace, Kind::SharedRace, Kind::Uninitialised],
        vec![Check::GlobalRaces, Check::SharedRaces, Check::Uninitialised],
    )
}

pub fn global_race(others: &[Check]) -> Expected {
    fault(Kind::GlobalRace, Check::GlobalRaces, others)
}

pub fn barrier() -> Expected {
    fault(Kind::DivergentBarrier, Check::Barriers, &[])
}

pub fn copy(others: &[Check]) -> Expected {
    fault(Kind::AsyncCopy, Check::AsyncCopies, others)
}

/// A missing wait: the copy has not begun, is still under way, or has landed unseen, as the schedule
/// will have it.
pub fn copy_or_race() -> Expected {
    Expected::Fault(
        vec![
            Kind::AsyncCopy,
            Kind::SharedRace,
            Kind::GlobalRace,
            Kind::Uninitialised,
        ],
        vec![
            Check::AsyncCopies,
            Check::SharedRaces,
            Check::GlobalRaces,
            Check::Uninitialised,
        ],
    )
}

/// A store issued before other threads have written and fenced their part of its source.
pub fn early_store() -> Expected {
    Expected::Fault(
        vec![
            Kind::SharedRace,
            Kind::MissingProxyFence,
            Kind::AsyncCopy,
            Kind::Uninitialised,
        ],
        vec![
            Check::SharedRaces,
            Check::Proxies,
            Check::AsyncCopies,
            Check::Uninitialised,
        ],
    )
}

pub fn proxy() -> Expected {
    fault(Kind::MissingProxyFence, Check::Proxies, &[])
}

pub fn limit() -> Expected {
    fault(Kind::LaunchLimit, Check::Limits, &[])
}

pub fn endless() -> Expected {
    fault(Kind::StepLimit, Check::Steps, &[])
}

/// Everybody waits. That ends a launch whatever is switched off: there is nothing left to run.
pub fn deadlock() -> Expected {
    Expected::Fault(vec![Kind::StepLimit], vec![])
}
