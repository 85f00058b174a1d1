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

fn loss(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hardmix"))
        .current_dir(folder)
        .arg("loss")
        .args(arguments)
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

#[test]
fn golden_cases_through_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let golden = fs::canonicalize(GOLDEN).unwrap();
    let mut cases = 0;
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "safetensors")
        {
            continue;
        }
        cases += 1;
        let name = path.display();
        // A bare name: the result lies in the program's own folder.
        let output = loss(folder.path(), &[path.to_str().unwrap(), "--out", "out"]);
        assert!(output.status.success(), "{name}: {output:?}");
        let (given, made) = (
            fs::read(&path).unwrap(),
            fs::read(folder.path().join("out")).unwrap(),
        );
        let (_, header) = SafeTensors::read_metadata(&given).unwrap();
        let temperature: f64 = header.metadata().as_ref().unwrap()["temperature"]
            .parse()
            .unwrap();
        let given = SafeTensors::deserialize(&given).unwrap();
        let made = SafeTensors::deserialize(&made).unwrap();
        for always in ALWAYS {
            assert!(made.tensor(always).is_ok(), "{name}: no {always}");
        }

        // T of the specification; norms of 16-bit queues are 1.
        let (dim, queries) = (
            given.tensor("queries").unwrap().shape()[1],
            f32s(&given, "queries"),
        );
        let queue = match given.tensor("queue").unwrap().dtype() {
            Dtype::F32 => longest(&f32s(&given, "queue"), dim),
            _ => 1.0,
        };
        let others = queue.max(longest(&f32s(&given, "keys"), dim));
        let tolerance = 1e-5 * (0.2 / temperature) * (longest(&queries, dim) * others).max(1.0);
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
    assert_eq!(cases, 14);
}

/// A small case with the given settings over sound ones, and its file.
fn case(folder: &Path, settings: &[(&str, &str)], left_out: Option<&str>) -> PathBuf {
    let floats: Vec<u8> = (0..8 * 4)
        .flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes())
        .collect();
    let view =
        |rows: usize| TensorView::new(Dtype::F32, vec![rows, 4], &floats[..rows * 16]).unwrap();
    let mut tensors = vec![("queries", view(2)), ("keys", view(2)), ("queue", view(8))];
    tensors.retain(|(name, _)| Some(*name) != left_out);
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
