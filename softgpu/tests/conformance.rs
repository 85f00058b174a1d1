//! Replays on the interpreter what GPUs answered: see `softgpu::conformance`.
//!
//! The recordings lie in `tests/conformance/*.vectors`. Where there are none, nothing here says
//! that softgpu agrees with any hardware, and the test prints so.

use std::path::{Path, PathBuf};

use softgpu::conformance::{Form, Vector, Vectors, forms};
use softgpu::fault::{Fault, Kind};
use softgpu::ir::Module;
use softgpu::launch::{Launch, Options, run};
use softgpu::memory::{Memory, Order};
use softgpu::tensor_map::TensorMap;

/// Forms that softgpu refuses, and why: nothing documents what the hardware does.
const REFUSED: &[(&str, &str)] = &[(
    "narrower than its swizzle",
    "where the rows of a box lie that are narrower than the swizzle is not documented",
)];

/// Runs a form with these input words.
fn answer(form: &Form, words: &[u32]) -> Result<Vec<u32>, Fault> {
    let mut memory = Memory::new(1 << 24);
    let module = Module::load(&form.ptx, &mut memory)?;
    let order = |time| Order {
        stream: 0,
        clock: vec![time],
    };
    let input = memory.allocate(4 * words.len().max(1) as u64)?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(input, &bytes, &order(1))?;
    let count = (form.total() * form.outputs) as usize;
    let output = memory.allocate(4 * count as u64)?;
    let mut parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
    if let Some(map) = &form.map {
        let map = TensorMap {
            address: input,
            ..map.clone()
        };
        map.check().expect("a map that the driver accepts");
        parameters.resize(64, 0);
        parameters.extend(map.encode());
    }
    let launch = Launch {
        kernel: module.kernel("form").expect("it is in the text"),
        grid: [form.blocks, 1, 1],
        block: [form.threads, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
        parameters: &parameters,
        cooperative: false,
        order: &order(2),
    };
    run(&launch, &mut memory, &Options::default())?;
    let mut bytes = vec![0; 4 * count];
    memory.read(output, &mut bytes, &order(3))?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect())
}

/// Why softgpu refuses a form, if it is known to.
fn refused(form: &Form) -> Option<&'static str> {
    let map = form.map.as_ref()?;
    let row = u64::from(map.box_dims[0]) * map.data_type.size();
    let narrow = map.swizzle.span().is_some_and(|span| row < span);
    narrow.then_some(REFUSED[0].1)
}

/// Replays a recorded answer.
fn replay(form: &Form, recorded: &Vector) -> Result<(), String> {
    if recorded.digest != form.digest() {
        return Err("the form has changed since it was recorded: record again".into());
    }
    let now = answer(form, &form.input()).map_err(|fault| fault.to_string())?;
    let scale = form.scale_input().map(|words| answer(form, &words));
    let scale = scale.transpose().map_err(|fault| fault.to_string())?;
    form.compare(&recorded.words, &now, scale.as_deref())
}

fn recordings() -> Vec<PathBuf> {
    let here = Path::new("tests/conformance");
    let entries = std::fs::read_dir(here).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "vectors")
        })
        .collect();
    files.sort();
    files
}

#[test]
fn softgpu_answers_as_the_recorded_devices_did() {
    let files = recordings();
    if files.is_empty() {
        println!(
            "conformance: no recorded vectors in tests/conformance: softgpu's answers have been \
             compared with no hardware (record them with the example `conformance` on a GPU)"
        );
        return;
    }
    let forms = forms();
    let mut failures = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file).expect("a readable file");
        let vectors = Vectors::decode(&bytes).expect("a file of vectors");
        let mut agreed = 0;
        for form in &forms {
            let Some(recorded) = vectors.forms.get(&form.name) else {
                continue;
            };
            if let Some(reason) = refused(form) {
                println!("conformance: {} is left out: {reason}", form.name);
                continue;
            }
            match replay(form, recorded) {
                Ok(()) => agreed += 1,
                Err(what) => failures.push(format!("{}: {what}", form.name)),
            }
        }
        println!("conformance: {agreed} forms agree with {}", vectors.device);
    }
    assert!(
        failures.is_empty(),
        "{} forms differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Every form runs here, gives the same answer twice, and would notice an answer that differs in
/// one word: that the replay can fail is shown without any recording.
#[test]
fn every_form_runs_and_a_different_answer_is_noticed() {
    let mut failures = Vec::new();
    let all = forms();
    for form in &all {
        let words = form.input();
        match (answer(form, &words), refused(form)) {
            (Err(fault), Some(_)) => assert_eq!(fault.kind, Kind::Unsupported, "{fault}"),
            (Ok(_), Some(reason)) => failures.push(format!("{}: runs, though {reason}", form.name)),
            (Err(fault), None) => failures.push(format!("{}: {fault}", form.name)),
            (Ok(words), None) => {
                let mut vector = Vector {
                    digest: form.digest(),
                    words,
                };
                if let Err(what) = replay(form, &vector) {
                    failures.push(format!("{}: not reproducible: {what}", form.name));
                }
                let last = vector.words.len() - 1;
                vector.words[last] ^= 0x4000_4000;
                if replay(form, &vector).is_ok() {
                    failures.push(format!("{}: a wrong answer passes", form.name));
                }
                vector.digest ^= 1;
                assert!(replay(form, &vector).unwrap_err().contains("record again"));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} forms fail:\n{}",
        failures.len(),
        all.len(),
        failures.join("\n")
    );
}
