//! `hardmix loss`: the golden cases through the program, and what it refuses.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const GOLDEN: &str = "../tests/golden";

/// What every result holds.
const ALWAYS: [&str; 8] = [
    "loss",
    "loss_rows",
    "grad_queries",
    "mixed_logits",
    "query_mixed_logits",
    "hardest",
    "hits",
    "hits_with_synthetic",
];

fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_hardmix"));
    program.current_dir(folder).arg("loss").args(arguments);
    program
}

fn loss(folder: &Path, arguments: &[&str]) -> Output {
    program(folder, arguments)
        .output()
        .expect("the program runs")
}

/// The one sentence of a failure.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = loss(folder, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn f32s(file: &SafeTensors, name: &str) -> Vec<f64> {
    let (values, _) = file.tensor(name).expect(name).data().as_chunks();
    values
        .iter()
        .map(|&x| f32::from_le_bytes(x).into())
        .collect()
}

fn f64s(file: &SafeTensors, name: &str) -> Vec<f64> {
    let (values, _) = file.tensor(name).expect(name).data().as_chunks();
    values.iter().map(|&x| f64::from_le_bytes(x)).collect()
}

/// The largest norm of rows of `dim`.
fn longest(values: &[f64], dim: usize) -> f64 {
    let square = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>();
    values.chunks(dim).map(square).fold(0.0, f64::max).sqrt()
}

/// The golden cases.
fn golden() -> Vec<PathBuf> {
    let entries = fs::read_dir(fs::canonicalize(GOLDEN).unwrap()).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|it| it == "safetensors"));
    assert_eq!(cases.len(), 14);
    cases
}

/// T of the specification; norms of 16-bit queues are 1.
fn tolerance(bytes: &[u8]) -> f64 {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let temperature: f64 = header.metadata().as_ref().unwrap()["temperature"]
        .parse()
        .unwrap();
    let case = SafeTensors::deserialize(bytes).unwrap();
    let dim = case.tensor("queries").unwrap().shape()[1];
    let queue = match case.tensor("queue").unwrap().dtype() {
        Dtype::F32 => longest(&f32s(&case, "queue"), dim),
        _ => 1.0,
    };
    let others = queue.max(longest(&f32s(&case, "keys"), dim));
    let reach = longest(&f32s(&case, "queries"), dim) * others;
    1e-5 * (0.2 / temperature) * reach.max(1.0)
}

#[test]
fn golden_cases_through_the_program() {
    let folder = tempfile::tempdir().unwrap();
    for path in golden() {
        let name = path.display();
        // A bare name: the result lies in the program's own folder.
        let output = loss(folder.path(), &[path.to_str().unwrap(), "--out", "out"]);
        assert!(output.status.success(), "{name}: {output:?}");
        let (given, made) = (
            fs::read(&path).unwrap(),
            fs::read(folder.path().join("out")).unwrap(),
        );
        let tolerance = tolerance(&given);
        let given = SafeTensors::deserialize(&given).unwrap();
        let made = SafeTensors::deserialize(&made).unwrap();
        for always in ALWAYS {
            assert!(made.tensor(always).is_ok(), "{name}: no {always}");
        }

        for (ours, theirs) in f32s(&made, "loss_rows")
            .into_iter()
            .zip(f64s(&given, "expected.loss_rows"))
        {
            assert!(
                (ours - theirs).abs() <= tolerance,
                "{name}: {ours} {theirs}"
            );
        }
        for exact in ["hardest", "hits", "hits_with_synthetic"] {
            // Without N nothing is ranked, and the case says nothing of it.
            match given.tensor(&format!("expected.{exact}")) {
                Ok(theirs) => {
                    assert_eq!(made.tensor(exact).unwrap().data(), theirs.data(), "{name}");
                }
                Err(_) => assert_eq!(made.tensor(exact).unwrap().shape()[1], 0, "{name}"),
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "leftovers");
    }
}

/// A small case with the given settings over sound ones, and its file.
fn case(folder: &Path, settings: &[(&str, &str)], left_out: Option<&str>) -> PathBuf {
    case_with_draws(folder, settings, left_out, &[])
}

/// The same with tensors of draws, all of zeros, of these names, types and widths.
fn case_with_draws(
    folder: &Path,
    settings: &[(&str, &str)],
    left_out: Option<&str>,
    draws: &[(&'static str, Dtype, usize)],
) -> PathBuf {
    let floats: Vec<u8> = (0..8 * 4)
        .flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes())
        .collect();
    let view =
        |rows: usize| TensorView::new(Dtype::F32, vec![rows, 4], &floats[..rows * 16]).unwrap();
    let mut tensors = vec![("queries", view(2)), ("keys", view(2)), ("queue", view(8))];
    tensors.retain(|(name, _)| Some(*name) != left_out);
    let zeros = [0; 2 * 4 * 8];
    tensors.extend(draws.iter().map(|&(name, dtype, width)| {
        let view = TensorView::new(dtype, vec![2, width], &zeros[..2 * 4 * width]);
        (name, view.unwrap())
    }));
    let mut metadata: HashMap<String, String> = [
        ("temperature", "0.2"),
        ("hardest", "4"),
        ("mixed", "3"),
        ("query_mixed", "2"),
        ("query_gradient", "detached"),
        ("oracle", "false"),
        ("seed", "7"),
        ("step", "1"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    for (key, value) in settings {
        metadata.insert((*key).to_owned(), (*value).to_owned());
    }
    metadata.retain(|_, value| !value.is_empty());
    let path = folder.join("case");
    fs::write(
        &path,
        safetensors::serialize(tensors, Some(metadata)).unwrap(),
    )
    .unwrap();
    path
}

#[test]
fn draws_made_from_the_seed_are_written_and_give_the_same_loss() {
    let folder = tempfile::tempdir().unwrap();
    case(folder.path(), &[], None);
    let printed = loss(folder.path(), &["case"]);
    assert!(printed.status.success(), "{printed:?}");
    assert!(
        loss(folder.path(), &["case", "--out", "out"])
            .status
            .success()
    );
    let made = fs::read(folder.path().join("out")).unwrap();
    let made = SafeTensors::deserialize(&made).unwrap();
    let printed: f32 = String::from_utf8(printed.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(f32s(&made, "loss"), [f64::from(printed)]);
    for (name, width) in [
        ("first", 3),
        ("second", 3),
        ("alpha", 3),
        ("pick", 2),
        ("beta", 2),
    ] {
        assert_eq!(made.tensor(name).unwrap().shape(), [2, width], "{name}");
    }
}

/// Every tensor of draws, of this width.
fn draws(width: usize) -> [(&'static str, Dtype, usize); 5] {
    [
        ("first", Dtype::U32, width),
        ("second", Dtype::U32, width),
        ("alpha", Dtype::F32, width),
        ("pick", Dtype::U32, width),
        ("beta", Dtype::F32, width),
    ]
}

#[test]
fn where_nothing_is_drawn_a_case_may_say_anything_of_draws() {
    let folder = tempfile::tempdir().unwrap();
    let printed = |settings: &[(&str, &str)], draws: &[(&'static str, Dtype, usize)]| {
        let none = [("mixed", "0"), ("query_mixed", "0")];
        case_with_draws(folder.path(), &[&none[..], settings].concat(), None, draws);
        let output = loss(folder.path(), &["case"]);
        assert!(
            output.status.success(),
            "{settings:?}, {draws:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let (no_seed, no_step) = (("seed", ""), ("step", ""));
    let expected = printed(&[], &[]);
    for settings in [&[][..], &[no_seed], &[no_step], &[no_seed, no_step]] {
        for draws in [&[][..], &draws(0), &draws(0)[..1]] {
            assert_eq!(
                printed(settings, draws),
                expected,
                "{settings:?}, {draws:?}"
            );
        }
    }
    // A tensor of another width is no draw of this case.
    let none = [("mixed", "0"), ("query_mixed", "0")];
    case_with_draws(folder.path(), &none, None, &draws(3)[..1]);
    let sentence = refused(folder.path(), &["case"]);
    assert!(
        sentence.contains("`first` has shape [2, 3]; expected [2, 0]"),
        "{sentence}"
    );
}

#[test]
fn both_or_neither_kind_of_draws_is_refused_where_any_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (no_seed, no_step) = (("seed", ""), ("step", ""));
    // Of each kind as many, so that both kinds' tensors have their width.
    let widths = [("mixed", "3"), ("query_mixed", "3")];
    let all = draws(3);
    for (settings, draws, reason) in [
        (
            &[][..],
            &all[..],
            "has both draws (`first`) and `seed` with `step`",
        ),
        (
            &[],
            &all[3..4],
            "has both draws (`pick`) and `seed` with `step`",
        ),
        (
            &[no_seed, no_step],
            &[],
            "has neither draws (`first`) nor `seed` and `step`",
        ),
        (
            &[no_seed, no_step],
            &all[..3],
            "has neither draws (`pick`) nor `seed` and `step`",
        ),
        (&[no_step], &all, "has a `seed` but no `step`"),
        (&[no_seed], &[], "has a `step` but no `seed`"),
    ] {
        case_with_draws(
            folder.path(),
            &[&widths[..], settings].concat(),
            None,
            draws,
        );
        let sentence = refused(folder.path(), &["case", "--out", "out"]);
        assert!(sentence.contains(reason), "{reason}: {sentence}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{reason}");
    }
    case_with_draws(
        folder.path(),
        &[&widths[..], &[no_seed, no_step]].concat(),
        None,
        &all,
    );
    assert!(loss(folder.path(), &["case"]).status.success());
}

#[test]
fn what_is_no_case_is_refused_in_a_sentence_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, left_out, reason) in [
        (&[][..], Some("queue"), "queue"),
        (&[("temperature", "0")][..], None, "temperature"),
        (&[("temperature", "")][..], None, "temperature"),
        (&[("hardest", "9")][..], None, "hardest"),
        (&[("oracle", "perhaps")][..], None, "oracle"),
        (&[("seed", "")][..], None, "seed"),
    ] {
        case(folder.path(), settings, left_out);
        let sentence = refused(folder.path(), &["case", "--out", "out"]);
        assert!(sentence.contains(reason), "{reason}: {sentence}");
        assert_eq!(sentence.trim().lines().count(), 1, "{sentence}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{reason}");
    }
    fs::write(folder.path().join("case"), b"no safetensors").unwrap();
    refused(folder.path(), &["case"]);
    refused(folder.path(), &["nothing"]);
    if cfg!(not(feature = "cuda")) {
        case(folder.path(), &[], None);
        let sentence = refused(folder.path(), &["case", "--device", "cuda"]);
        assert!(sentence.contains("feature `cuda`"), "{sentence}");
    }
}

/// The same cases with `--device cuda`: on softgpu, or with REQUIRE_GPU on the machine's own GPU.
#[cfg(feature = "cuda")]
mod cuda {
    use super::*;

    /// The program with a CUDA driver in reach.
    fn on_gpu(folder: &Path, driver: &Path, arguments: &[&str]) -> Output {
        let mut program = program(folder, arguments);
        program.args(["--device", "cuda"]);
        if !std::env::var("REQUIRE_GPU").is_ok_and(|asked| !asked.is_empty() && asked != "0") {
            program.env("LD_LIBRARY_PATH", driver);
        }
        program.output().expect("the program runs")
    }

    /// A folder with softgpu under the names of the driver; cargo puts it beside this test.
    fn driver() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let softgpu = std::env::current_exe()
            .unwrap()
            .with_file_name("libsoftgpu.so");
        assert!(softgpu.is_file(), "there is no {}", softgpu.display());
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&softgpu, folder.path().join(name)).unwrap();
        }
        folder
    }

    /// The largest absolute error; NaN where one side alone is no number.
    fn error(ours: &[f64], theirs: &[f64]) -> f64 {
        let apart = ours.iter().zip(theirs).map(|(a, b)| match a == b {
            true => 0.0,
            false => (a - b).abs(),
        });
        apart.fold(0.0, |most, error| match error > most || error.is_nan() {
            true => error,
            false => most,
        })
    }

    /// Every tensor of a case's two results: whole numbers exactly, the others to the tolerances of
    /// the specification.
    fn compare(folder: &Path, driver: &Path, path: &Path) {
        let case = path.to_str().unwrap();
        for output in [
            loss(folder, &[case, "--out", "cpu"]),
            on_gpu(folder, driver, &[case, "--out", "cuda"]),
        ] {
            assert!(output.status.success(), "{case}: {output:?}");
        }
        let given = fs::read(path).unwrap();
        let tolerance = tolerance(&given);
        let given = SafeTensors::deserialize(&given).unwrap();
        let dim = given.tensor("queries").unwrap().shape()[1];
        let length = longest(&f32s(&given, "queries"), dim);
        let [cpu, cuda] = ["cpu", "cuda"].map(|name| fs::read(folder.join(name)).unwrap());
        let cpu = SafeTensors::deserialize(&cpu).unwrap();
        let cuda = SafeTensors::deserialize(&cuda).unwrap();
        assert_eq!(cpu.len(), cuda.len(), "{case}");
        for (name, theirs) in cpu.iter() {
            let ours = cuda.tensor(name).expect(name);
            assert_eq!(ours.dtype(), theirs.dtype(), "{case}: {name}");
            assert_eq!(ours.shape(), theirs.shape(), "{case}: {name}");
            if theirs.dtype() != Dtype::F32 || ["alpha", "beta"].contains(&name) {
                assert_eq!(ours.data(), theirs.data(), "{case}: {name}");
                continue;
            }
            let (ours, theirs) = (f32s(&cuda, name), f32s(&cpu, name));
            let (error, bound) = match name {
                "loss" | "loss_rows" => (error(&ours, &theirs), tolerance),
                "mixed_logits" | "query_mixed_logits" => {
                    (error(&ours, &theirs), 2e-6 * length.max(1.0))
                }
                "grad_queries" => {
                    let off: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
                    let whole = |values: &[f64]| longest(values, values.len());
                    (whole(&off), tolerance * whole(&theirs))
                }
                other => panic!("{other} is compared with nothing"),
            };
            assert!(error <= bound, "{case}: {name} is {error:e} off");
        }
    }

    #[test]
    fn the_gpu_says_what_the_cpu_says() {
        let (folder, driver) = (tempfile::tempdir().unwrap(), driver());
        for path in golden() {
            compare(folder.path(), driver.path(), &path);
        }
        // These hold their draws; here they are made on the device.
        let path = case(folder.path(), &[], None);
        compare(folder.path(), driver.path(), &path);
    }

    #[test]
    fn without_a_driver_there_is_a_sentence_and_no_file() {
        let folder = tempfile::tempdir().unwrap();
        case(folder.path(), &[], None);
        let output = program(folder.path(), &["case", "--device", "cuda", "--out", "out"])
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .expect("the program runs");
        if output.status.success() {
            println!("this machine has a driver");
            return;
        }
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert!(sentence.contains("driver"), "{sentence}");
        assert_eq!(sentence.trim().lines().count(), 1, "{sentence}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "{sentence}"
        );
    }

    /// What the device refuses after the host's checks is a sentence as well.
    #[test]
    fn bad_input_is_refused_as_on_the_cpu() {
        let (folder, driver) = (tempfile::tempdir().unwrap(), driver());
        for settings in [[("hardest", "9")], [("temperature", "0")]] {
            case(folder.path(), &settings, None);
            let output = on_gpu(folder.path(), driver.path(), &["case", "--out", "out"]);
            assert!(!output.status.success(), "{settings:?} succeeded");
            let sentence = String::from_utf8(output.stderr).unwrap();
            assert_eq!(sentence, refused(folder.path(), &["case"]));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
