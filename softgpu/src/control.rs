//! How tests steer softgpu and learn what it found.
//!
//! A test links this crate, and the program under test loads the same crate as a shared library:
//! two copies, each with its own statics. The public functions here therefore call the loaded
//! copy, through symbols that it exports.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::{c_char, c_int};
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::check::{Check, Checks};
use crate::counters::Counters;
use crate::fault::Fault;
use crate::install::symbol;
use crate::launch::{Blocks, Copies, Options, Schedule};

/// The launches of a thread that are remembered for [`take_launches`].
const REMEMBERED: usize = 1 << 16;

// The loaded copy.

static ENVIRONMENT: LazyLock<Options> = LazyLock::new(from_environment);
static LAST_REPORT: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// A thread's own: tests beside each other in a process must not steer each other's launches.
    static OPTIONS: Cell<Options> = Cell::new(*ENVIRONMENT);
    static LAUNCHES: RefCell<VecDeque<(Arc<str>, Counters)>> = const { RefCell::new(VecDeque::new()) };
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// `SOFTGPU_UNCHECKED`, `SOFTGPU_STEP_LIMIT` and `SOFTGPU_SCHEDULE`, for programs that nobody
/// steers from inside.
fn from_environment() -> Options {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .filter(|value: &String| !value.is_empty())
    };
    let mut options = Options::default();
    if variable("SOFTGPU_UNCHECKED").is_some_and(|value| value != "0") {
        options.checks = Checks::unchecked();
    }
    if let Some(limit) = variable("SOFTGPU_STEP_LIMIT").and_then(|limit| limit.parse().ok()) {
        options.step_limit = limit;
    }
    if let Some(schedule) = variable("SOFTGPU_SCHEDULE") {
        match parse_schedule(&schedule) {
            Some(schedule) => options.schedule = schedule,
            None => complain(&format!(
                "softgpu: SOFTGPU_SCHEDULE is {schedule:?}; it takes in-order, reversed or random, \
                 then early, late or random, then a seed, as in reversed,late,0"
            )),
        }
    }
    options
}

fn parse_schedule(text: &str) -> Option<Schedule> {
    let mut words = text.split(',').map(str::trim);
    let blocks = match words.next()? {
        "in-order" => Blocks::InOrder,
        "reversed" => Blocks::Reversed,
        "random" => Blocks::Random,
        _ => return None,
    };
    let copies = match words.next()? {
        "early" => Copies::Early,
        "late" => Copies::Late,
        "random" => Copies::Random,
        _ => return None,
    };
    let seed = words.next().map_or(Some(0), |seed| seed.parse().ok())?;
    words.next().is_none().then_some(Schedule {
        blocks,
        copies,
        seed,
    })
}

fn complain(sentence: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{sentence}");
}

fn change(act: impl FnOnce(&mut Options)) {
    let mut options = options();
    act(&mut options);
    adopt(options);
}

/// How this thread's launches run now.
pub(crate) fn options() -> Options {
    OPTIONS.get()
}

/// Lets this thread's launches run like another thread's: those that it does in its place.
pub(crate) fn adopt(options: Options) {
    OPTIONS.set(options);
}

/// Says on stderr what a check found, and remembers it.
pub(crate) fn report(fault: &Fault) {
    let paragraph = fault.to_string();
    complain(&paragraph);
    *LAST_REPORT.lock().unwrap_or_else(PoisonError::into_inner) = paragraph;
}

/// Remembers what a launch of this thread did.
pub(crate) fn count(kernel: &Arc<str>, counters: &Counters) {
    LAUNCHES.with_borrow_mut(|launches| {
        if launches.len() == REMEMBERED {
            launches.pop_front();
        }
        launches.push_back((kernel.clone(), *counters));
    });
}

/// Copies text to a caller's buffer, with a NUL if there is room; returns its full length.
///
/// # Safety
/// `buffer` has `room` writable bytes, or `room` is 0.
unsafe fn give_text(text: &str, buffer: *mut c_char, room: usize) -> usize {
    if room > 0 {
        let len = text.len().min(room - 1);
        // SAFETY: `len` is below `room`, and our text is not in the caller's buffer.
        unsafe {
            buffer
                .cast::<u8>()
                .copy_from_nonoverlapping(text.as_ptr(), len);
            buffer.add(len).write(0);
        }
    }
    text.len()
}

#[unsafe(no_mangle)]
extern "C" fn softgpu_set_schedule(blocks: u32, copies: u32, seed: u64) {
    let blocks = [Blocks::InOrder, Blocks::Reversed, Blocks::Random][blocks.min(2) as usize];
    let copies = [Copies::Early, Copies::Late, Copies::Random][copies.min(2) as usize];
    change(|options| {
        options.schedule = Schedule {
            blocks,
            copies,
            seed,
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn softgpu_set_check(check: u32, on: c_int) {
    if let Some(check) = Check::ALL.into_iter().find(|known| *known as u32 == check) {
        change(|options| options.checks = options.checks.with(check, on != 0));
    }
}

#[unsafe(no_mangle)]
extern "C" fn softgpu_set_unchecked(unchecked: c_int) {
    let checks = if unchecked == 0 {
        Checks::all()
    } else {
        Checks::unchecked()
    };
    change(|options| options.checks = checks);
}

#[unsafe(no_mangle)]
extern "C" fn softgpu_set_step_limit(limit: u64) {
    change(|options| options.step_limit = limit);
}

/// # Safety
/// `buffer` has `room` writable bytes, or `room` is 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn softgpu_last_report(buffer: *mut c_char, room: usize) -> usize {
    let report = LAST_REPORT.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller's contract.
    unsafe { give_text(&report, buffer, room) }
}

/// Counts a call that makes the thread wait for the device's work.
pub(crate) fn count_wait() {
    WAITS.set(WAITS.get() + 1);
}

#[unsafe(no_mangle)]
extern "C" fn softgpu_waits() -> u64 {
    WAITS.get()
}

/// Takes the oldest remembered launch of this thread; returns the length of its kernel's name, or
/// -1 if there is none.
///
/// # Safety
/// `buffer` has `room` writable bytes, or `room` is 0; `counters` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn softgpu_take_launch(
    buffer: *mut c_char,
    room: usize,
    counters: *mut Counters,
) -> isize {
    let Some((kernel, counts)) = LAUNCHES.with_borrow_mut(VecDeque::pop_front) else {
        return -1;
    };
    // SAFETY: the caller's contract.
    unsafe {
        counters.write(counts);
        give_text(&kernel, buffer, room) as isize
    }
}

// The copy that a test links.

/// Sets the order of blocks and warps, and when asynchronous copies land, for later launches of
/// this thread.
///
/// # Panics
/// Where softgpu is not what the process runs on (see [`crate::install()`]); so do the others here.
pub fn set_schedule(schedule: Schedule) {
    // SAFETY: the exported function above has this type.
    let set = unsafe { symbol::<extern "C" fn(u32, u32, u64)>(c"softgpu_set_schedule") };
    let blocks = match schedule.blocks {
        Blocks::InOrder => 0,
        Blocks::Reversed => 1,
        Blocks::Random => 2,
    };
    let copies = match schedule.copies {
        Copies::Early => 0,
        Copies::Late => 1,
        Copies::Random => 2,
    };
    set(blocks, copies, schedule.seed);
}

/// Switches one class of checks on or off for later launches of this thread.
pub fn set_check(check: Check, on: bool) {
    // SAFETY: the exported function above has this type.
    let set = unsafe { symbol::<extern "C" fn(u32, c_int)>(c"softgpu_set_check") };
    set(check as u32, c_int::from(on));
}

/// Switches all checks but the step limit off, or all on again, for later launches of this thread.
pub fn set_unchecked(unchecked: bool) {
    // SAFETY: the exported function above has this type.
    let set = unsafe { symbol::<extern "C" fn(c_int)>(c"softgpu_set_unchecked") };
    set(c_int::from(unchecked));
}

/// Sets the most instructions that a later launch of this thread may execute.
pub fn set_step_limit(limit: u64) {
    // SAFETY: the exported function above has this type.
    let set = unsafe { symbol::<extern "C" fn(u64)>(c"softgpu_set_step_limit") };
    set(limit);
}

/// What the last check that found something said, as on stderr; empty if none did.
pub fn last_report() -> String {
    type LastReport = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: the exported function above has this type.
    let get = unsafe { symbol::<LastReport>(c"softgpu_last_report") };
    // SAFETY: the buffers are as long as is said.
    text(|buffer, room| unsafe { get(buffer, room) })
}

/// What each launch of this thread did since the last call, with its kernel's name, oldest first.
pub fn take_launches() -> Vec<(String, Counters)> {
    type TakeLaunch = unsafe extern "C" fn(*mut c_char, usize, *mut Counters) -> isize;
    // SAFETY: the exported function above has this type.
    let take = unsafe { symbol::<TakeLaunch>(c"softgpu_take_launch") };
    let mut launches = Vec::new();
    loop {
        let mut name = [0u8; 4096];
        let mut counters = Counters::default();
        // SAFETY: the buffer is as long as is said, the counters are ours.
        let len = unsafe { take(name.as_mut_ptr().cast(), name.len(), &mut counters) };
        let Ok(len) = usize::try_from(len) else {
            return launches;
        };
        let name = &name[..len.min(name.len() - 1)];
        launches.push((String::from_utf8_lossy(name).into_owned(), counters));
    }
}

/// How often this thread has waited for the device's work so far: copies to the host's memory, and
/// synchronisations of a stream, an event or the context.
pub fn waits() -> u64 {
    // SAFETY: the exported function above has this type.
    let waits = unsafe { symbol::<extern "C" fn() -> u64>(c"softgpu_waits") };
    waits()
}

/// What the last launch of this thread did, of those that nobody asked for yet.
pub fn counters() -> Option<Counters> {
    take_launches().pop().map(|(_, counters)| counters)
}

/// Text of unknown length.
fn text(get: impl Fn(*mut c_char, usize) -> usize) -> String {
    let mut buffer = vec![0u8; get(std::ptr::null_mut(), 0) + 1];
    let len = get(buffer.as_mut_ptr().cast(), buffer.len());
    // Another thread may have put a longer text there meanwhile.
    buffer.truncate(len.min(buffer.len() - 1));
    String::from_utf8_lossy(&buffer).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steers_its_own_launches_alone() {
        let before = options();
        std::thread::spawn(move || {
            softgpu_set_schedule(1, 0, 5);
            softgpu_set_check(Check::Bounds as u32, 0);
            softgpu_set_step_limit(7);
            let own = options();
            assert_eq!((own.schedule.blocks, own.step_limit), (Blocks::Reversed, 7));
            assert!(!own.checks.has(Check::Bounds) && own != before);
        })
        .join()
        .unwrap();
        assert_eq!(options(), before);
    }

    #[test]
    fn schedules_are_read_from_text() {
        let reversed = Schedule {
            blocks: Blocks::Reversed,
            copies: Copies::Late,
            seed: 0,
        };
        assert_eq!(parse_schedule("reversed,late"), Some(reversed));
        assert_eq!(
            parse_schedule("reversed, late, 7"),
            Some(Schedule {
                seed: 7,
                ..reversed
            })
        );
        for wrong in [
            "",
            "late",
            "reversed",
            "reversed,late,x",
            "reversed,late,1,2",
        ] {
            assert_eq!(parse_schedule(wrong), None, "{wrong:?}");
        }
    }
}
