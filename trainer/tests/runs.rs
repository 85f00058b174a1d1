//! The binary from outside: what a run leaves, and that nothing that stops one loses anything.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hardmix_trainer::metrics::{self, Line};
use hardmix_trainer::run_folder::RunFolder;
use tempfile::tempdir;

/// Six steps an epoch, four epochs, a checkpoint every third step, one epoch of warm-up.
const SETTINGS: &str = "--train-images 384 --batch 64 --epochs 4 --queue 200 --hardest 32 --mixed 16 \
     --query-mixed 8 --warm-up-epochs 1 --evaluate-every 0 --checkpoint-every 3 --log-every 1";
const STEPS: u64 = 24;

fn hardmix(threads: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hardmix"));
    command
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdin(Stdio::null());
    command
}

fn train(run: &Path) -> Command {
    let mut command = hardmix(2);
    command
        .arg("train")
        .args(SETTINGS.split_whitespace())
        .arg("--run")
        .arg(run);
    command
}

fn resume(run: &Path) -> Command {
    let mut command = hardmix(2);
    command.arg("train").arg("--resume").arg(run);
    command
}

fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Asserts a failure with one line on standard error, and returns it.
fn fails(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn last_checkpoint(run: &Path) -> Vec<u8> {
    fs::read(RunFolder::new(run).checkpoint(STEPS)).unwrap()
}

/// The metrics without wall-clock figures and without the thread count.
fn timeless(run: &Path) -> Vec<Line> {
    let mut lines = metrics::read(&RunFolder::new(run).metrics()).unwrap();
    for line in &mut lines {
        match line {
            Line::Run(line) => line.threads = 0,
            Line::Step(line) => {
                (line.images_per_second, line.loss_seconds, line.step_seconds) = (0.0, 0.0, 0.0);
            }
            Line::Epoch(line) => {
                (line.images_per_second, line.loss_seconds) = (0.0, 0.0);
                (line.seconds, line.evaluation_seconds) = (0.0, 0.0);
            }
            Line::Result(line) => line.evaluation_seconds = 0.0,
        }
    }
    lines
}

fn spawn(mut command: Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the metrics of a running process reach a step.
fn wait_for_step(run: &Path, child: &mut Child, step: u64) {
    let began = Instant::now();
    let marker = format!("\"step\",\"step\":{step},");
    while !fs::read_to_string(RunFolder::new(run).metrics())
        .is_ok_and(|text| text.contains(&marker))
    {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before step {step}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "step {step} never came"
        );
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_leaves_its_folder_and_is_repeated_bit_by_bit() {
    let folder = tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let output = ok(train(&first));
    assert!(
        output.stderr.is_empty(),
        "quiet where standard error is no terminal"
    );
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("20 nearest neighbours")
    );
    let paths = RunFolder::new(&first);
    for path in [
        paths.config(),
        paths.metrics(),
        paths.neighbours(),
        paths.report(),
    ] {
        assert!(path.is_file(), "{}", path.display());
    }
    let lines = metrics::read(&paths.metrics()).unwrap();
    assert!(matches!(lines.first(), Some(Line::Run(line)) if line.steps == STEPS));
    assert!(matches!(lines.last(), Some(Line::Result(line)) if line.bank_images == 384));
    let steps = lines
        .iter()
        .filter(|line| matches!(line, Line::Step(_)))
        .count();
    assert_eq!(steps as u64, STEPS);

    // On one thread as on two.
    let mut one = hardmix(1);
    one.arg("train")
        .args(SETTINGS.split_whitespace())
        .arg("--run")
        .arg(&second);
    ok(one);
    assert!(last_checkpoint(&first) == last_checkpoint(&second));
    assert!(timeless(&first) == timeless(&second));

    let error = fails(train(&first));
    assert!(error.contains("already holds a run"), "{error}");
    // A run that ended ends again, with the same result.
    ok(resume(&first));
    assert!(timeless(&first) == timeless(&second));
    let other = folder.path().join("other");
    let mut seeded = train(&other);
    seeded.args(["--seed", "1"]);
    ok(seeded);
    assert!(last_checkpoint(&first) != last_checkpoint(&other));
}

#[test]
fn a_run_killed_anywhere_ends_with_the_bits_of_one_that_was_not() {
    let folder = tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    ok(train(&whole));
    let mut child = spawn(train(&killed));
    // Before and after checkpoints and ends of epochs, and during the final evaluation.
    let points = [
        1, 2, 3, 4, 6, 7, 9, 11, 12, 13, 15, 16, 18, 19, 21, 22, 23, 24,
    ];
    for (index, step) in points.into_iter().enumerate() {
        wait_for_step(&killed, &mut child, step);
        sleep(Duration::from_micros(700 * (index as u64 % 7)));
        child.kill().unwrap();
        child.wait().unwrap();
        child = spawn(resume(&killed));
    }
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(last_checkpoint(&whole) == last_checkpoint(&killed));
    assert!(timeless(&whole) == timeless(&killed));
    let leftovers = fs::read_dir(RunFolder::new(&killed).checkpoints())
        .unwrap()
        .count();
    assert!(
        leftovers <= 3,
        "two checkpoints, and at most one unfinished"
    );
}

#[test]
fn ctrl_c_ends_after_the_step_with_a_checkpoint() {
    let folder = tempdir().unwrap();
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    ok(train(&whole));
    let mut child = spawn(train(&run));
    wait_for_step(&run, &mut child, 4);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(child.wait().unwrap().success());
    let lines = metrics::read(&RunFolder::new(&run).metrics()).unwrap();
    let last = lines.last().unwrap().step();
    assert!((4..STEPS).contains(&last));
    assert!(RunFolder::new(&run).checkpoint(last).is_file());
    ok(resume(&run));
    assert!(last_checkpoint(&whole) == last_checkpoint(&run));
    assert!(timeless(&whole) == timeless(&run));
}

/// The newest checkpoint of a run that is interrupted after a few steps.
fn interrupted(run: &Path) -> PathBuf {
    let mut child = spawn(train(run));
    wait_for_step(run, &mut child, 4);
    child.kill().unwrap();
    child.wait().unwrap();
    RunFolder::new(run).checkpoint(3)
}

#[test]
fn a_full_disk_is_an_error_that_loses_nothing() {
    let folder = tempdir().unwrap();
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    ok(train(&whole));
    let checkpoint = interrupted(&run);
    let before = fs::read(&checkpoint).unwrap();
    // No file may grow beyond 64 blocks; without the trap the signal would end the process.
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        "trap '' XFSZ; ulimit -f 64; exec \"$0\" train --resume \"$1\"",
    ]);
    limited
        .arg(env!("CARGO_BIN_EXE_hardmix"))
        .arg(&run)
        .env("RAYON_NUM_THREADS", "2");
    let error = fails(limited);
    assert!(
        error.contains("cannot write") && error.contains("checkpoints"),
        "{error}"
    );
    assert!(fs::read(&checkpoint).unwrap() == before);
    ok(resume(&run));
    assert!(last_checkpoint(&whole) == last_checkpoint(&run));
    assert!(timeless(&whole) == timeless(&run));
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = fails(train(&file.join("run")));
    assert!(
        error.contains("cannot create") && error.contains("file/run"),
        "{error}"
    );
    let error = fails(resume(&folder.path().join("none")));
    assert!(error.contains("none holds no run"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_path_that_config_toml_cannot_hold_leaves_no_folder() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempdir().unwrap();
    let data = folder
        .path()
        .join(std::ffi::OsStr::from_bytes(b"im\xffages"));
    for index in 0..20 {
        let path = data.join("ant").join(format!("{index}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::new(8, 8).save(path).unwrap();
    }
    let run = folder.path().join("run");
    let mut command = hardmix(2);
    command.args(["train", "--batch", "4", "--run"]).arg(&run);
    command.arg("--data").arg(&data);
    let error = fails(command);
    assert!(
        error.contains("data is ") && error.contains("expected a path in UTF-8"),
        "{error}"
    );
    assert!(!run.exists());
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_it() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let checkpoint = interrupted(&run);
    let whole = fs::read(&checkpoint).unwrap();
    let name = checkpoint
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let mut other = whole.clone();
    let at = other
        .windows(9)
        .position(|bytes| bytes == b"\"format\\\"")
        .unwrap_or(0);
    other[at] ^= 1;
    for bytes in [&whole[..whole.len() / 2], &whole[..4], b"", &other] {
        fs::write(&checkpoint, bytes).unwrap();
        let error = fails(resume(&run));
        assert!(error.contains(&name), "{error}");
    }
    // Of another configuration: the queue has another size.
    fs::write(&checkpoint, &whole).unwrap();
    let config = RunFolder::new(&run).config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("queue = 200", "queue = 300")).unwrap();
    let error = fails(resume(&run));
    assert!(
        error.contains("its queue is 200×64; expected 300×64"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_checkpoint_is_neither_resumed_from_nor_removed() {
    let folder = tempdir().unwrap();
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    ok(train(&whole));
    interrupted(&run);
    // Some sort before every checkpoint, some behind, and none is one.
    let names = [
        "0.safetensors",
        "000000003.safetensors",
        "0000000003 (copy).safetensors",
        "00000000003.safetensors",
        "000000000x.safetensors",
        "best.safetensors",
    ];
    let others = names.map(|name| RunFolder::new(&run).checkpoints().join(name));
    for path in &others {
        fs::write(path, "mine").unwrap();
    }
    ok(resume(&run));
    for path in &others {
        let text = fs::read_to_string(path).unwrap_or_default();
        assert_eq!(text, "mine", "{}", path.display());
    }
    assert!(last_checkpoint(&whole) == last_checkpoint(&run));
}

/// Resident bytes of a process.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 4096
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_flat_over_500_steps() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = hardmix(2);
    let settings = "--train-images 800 --batch 16 --epochs 11 --queue 200 --hardest 32 --mixed 16 \
         --query-mixed 8 --evaluate-every 0 --log-every 1";
    command
        .arg("train")
        .args(settings.split_whitespace())
        .arg("--run")
        .arg(&run);
    let mut child = spawn(command);
    wait_for_step(&run, &mut child, 50);
    let early = resident(child.id());
    wait_for_step(&run, &mut child, 545);
    let late = resident(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    // A step's graph is 3 MB: kept, 500 of them would be 1.5 GB.
    assert!(
        late < early + (48 << 20),
        "grew from {early} to {late} bytes"
    );
}
