//! The report of runs that ended, did not end, never began, or were damaged.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use hardmix_trainer::error::Error;
use hardmix_trainer::report;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

const TITLES: [&str; 9] = [
    "20-NN accuracy",
    "Loss",
    "Proxy accuracy",
    "Alignment",
    "Uniformity",
    "Matching probability by rank",
    "False negatives among the hardest",
    "Synthetics harder than every real negative",
    "Time per step",
];

fn step(step: u64, epoch: f64) -> String {
    format!(
        r#"{{"kind":"step","step":{step},"epoch":{epoch},"loss":5.5,"proxy_accuracy":0.5,"proxy_accuracy_with_synthetic":0.25,"alignment":0.5,"uniformity":-2.5,"learning_rate":0.004,"images_per_second":2000.0,"loss_seconds":0.0125,"step_seconds":0.05}}"#
    )
}

fn epoch(epoch: u64) -> String {
    format!(
        r#"{{"kind":"epoch","step":{},"epoch":{epoch},"warm_up":false,"loss":5.25,"proxy_accuracy":0.75,"proxy_accuracy_with_synthetic":0.5,"alignment":0.5,"uniformity":-2.5,"matching_probability":[0.1,0.05,0.025,0.0],"same_label_share":0.375,"mixed_harder":0.0625,"query_mixed_harder":0.625,"knn":0.8125,"seconds":2.0,"loss_seconds":0.5,"images_per_second":2000.0,"evaluation_seconds":0.5}}"#,
        10 * epoch
    )
}

const RUN: &str = r#"{"kind":"run","version":"0.1.0","data":"some images","classes":["a","b"],"image":[1,28,28],"train_images":4000,"test_images":2000,"validation":false,"weights":123456,"steps":20,"threads":2}"#;

const RESULT: &str = r#"{"kind":"result","step":20,"epoch":2,"knn":0.8440,"knn_raw":0.8110,"knn_untrained":0.7120,"linear_probe":0.8530,"linear_probe_raw":0.8290,"linear_probe_untrained":0.7740,"bank_images":4000,"test_images":2000,"evaluation_seconds":4.0}"#;

/// A run folder of these settings and this text of metrics.
fn folder(config: &str, metrics: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.toml"), config).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    folder
}

fn ended() -> String {
    let lines = [
        RUN.into(),
        step(1, 0.0),
        step(10, 0.9),
        epoch(1),
        step(20, 1.9),
        epoch(2),
        RESULT.into(),
    ];
    lines.join("\n") + "\n"
}

fn rendered(folder: &Path) -> String {
    let path = report::write(folder).unwrap();
    assert_eq!(path, folder.join("report.html"));
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_run_that_ended_shows_every_picture_and_asks_the_network_for_nothing() {
    let folder = folder("epochs = 2\nwarm_up_epochs = 0\n", &ended());
    let page = rendered(folder.path());
    for title in TITLES {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    assert_eq!(page.matches("<svg").count(), TITLES.len());
    assert!(page.contains("84.4 %") && page.contains("81.1 %") && page.contains("71.2 %"));
    assert!(page.contains("3.3 points above raw pixels"));
    for outside in ["http:", "https:", "url(", "<script", "<link", "NaN", "inf"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Neighbours alone are missing, and said to be.
    assert!(page.contains("No neighbours yet"));
}

#[test]
fn the_caption_says_which_steps_are_shown() {
    for (log_every, shown) in [(1, "all are shown"), (2, "one in 2 is shown")] {
        let page = rendered(folder(&format!("log_every = {log_every}\n"), &ended()).path());
        assert!(
            page.contains(&format!("128 images; {shown}.")),
            "{log_every}"
        );
    }
    // More lines than points, of a number of steps that u64 cannot hold.
    let lines: Vec<String> = (1..=1000).map(|at| step(at, at as f64 / 1e3)).collect();
    let config = format!("log_every = {}\n", i64::MAX);
    let page = rendered(folder(&config, &(lines.join("\n") + "\n")).path());
    assert!(page.contains("the mean of the steps sampled among"));
}

#[test]
fn an_accuracy_below_raw_pixels_is_called_so() {
    let folder = folder("", &ended().replace("0.8440", "0.8010"));
    assert!(rendered(folder.path()).contains("1.0 points below raw pixels"));
}

#[test]
fn a_run_without_metrics_names_all_that_is_missing() {
    let folder = folder("", "");
    let page = rendered(folder.path());
    assert!(page.contains("Not ended after 0 of 12 epochs"));
    assert!(page.contains("No final evaluation") && page.contains("No epoch has been evaluated"));
    for title in TITLES {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    assert_eq!(page.matches("<svg").count(), 0);
    fs::remove_file(folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(rendered(folder.path()), page);
}

#[test]
fn an_unfinished_run_shows_what_it_has() {
    let folder = folder("", &[step(1, 0.0), epoch(1), String::new()].join("\n"));
    let page = rendered(folder.path());
    assert!(page.contains("After epoch 1 the 20 nearest neighbours were right for 81.2 %"));
    assert!(page.contains("The line of raw pixels is missing"));
    assert!(!page.contains("is cut off"));
}

#[test]
fn a_line_cut_off_at_the_end_is_left_out_and_said_to_be() {
    let whole = [epoch(1), epoch(2)].join("\n");
    for cut in [whole.len() - 1, whole.len() - 100, whole.len()] {
        let page = rendered(folder("", &whole[..cut]).path());
        assert!(
            page.contains("is cut off") && page.contains("Not ended after 1 of 12"),
            "{cut}"
        );
    }
}

#[test]
fn a_damaged_line_is_an_error_that_names_it() {
    for broken in [
        "{",
        "",
        "null",
        r#"{"kind":"step"}"#,
        r#"{"kind":"other","step":1}"#,
    ] {
        let folder = folder("", &format!("{}\n{broken}\n{}\n", epoch(1), epoch(2)));
        match report::write(folder.path()) {
            Err(Error::Metrics { line: 2, .. }) => {}
            other => panic!("{broken:?}: {other:?}"),
        }
        assert!(!folder.path().join("report.html").exists());
    }
}

#[test]
fn an_empty_line_at_the_end_is_no_line_of_metrics() {
    let folder = folder("", &(epoch(1) + "\n\n"));
    assert!(matches!(
        report::write(folder.path()),
        Err(Error::Metrics { line: 2, .. })
    ));
}

#[test]
fn numbers_out_of_order_or_of_any_size_make_a_page() {
    let epochs = [epoch(3), epoch(1), epoch(u64::MAX / 10)].join("\n");
    for (from, to) in [
        ("0.5", "1e308"),
        ("0.5", "-1e308"),
        ("0.1", "1e-320"),
        ("2.0", "0.0"),
    ] {
        rendered(folder("", &(epochs.replace(from, to) + "\n")).path());
    }
    let none = ended().replace("\"test_images\":2000", "\"test_images\":0");
    rendered(folder("batch = 1\nlog_every = 1\n", &none).path());
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    let folder = folder("", "");
    fs::write(folder.path().join("metrics.jsonl"), [0xff, 0xfe, b'\n']).unwrap();
    assert!(matches!(
        report::write(folder.path()),
        Err(Error::Io { .. })
    ));
}

#[test]
fn a_folder_without_a_run_is_an_error() {
    let folder = TempDir::new().unwrap();
    assert!(matches!(
        report::write(folder.path()),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        report::write(&folder.path().join("none")),
        Err(Error::Io { .. })
    ));
}

#[test]
fn a_damaged_config_is_an_error() {
    let folder = folder("colour = 3\n", "");
    assert!(matches!(
        report::write(folder.path()),
        Err(Error::ConfigFile { .. })
    ));
}

#[test]
fn text_from_outside_is_escaped() {
    let folder = folder(
        "data = \"/sets/<script>alert(1)</script>&\\\"x\"\n",
        &ended(),
    );
    let page = rendered(folder.path());
    assert!(
        !page.contains("<script>") && page.contains("&lt;script&gt;"),
        "the name of the images"
    );
}

#[test]
fn moco_is_not_blamed_for_making_no_synthetics() {
    let folder = folder("method = \"moco\"\n", &epoch(1).replace("0.0625", "null"));
    let page = rendered(folder.path());
    assert!(page.contains("MoCo on the embedded") && page.contains("makes no synthetic negatives"));
    assert!(!page.contains("warm-up</text>"));
}

#[test]
fn the_pictures_are_files_of_their_own() {
    let folder = folder("", &ended());
    let into = folder.path().join("pictures");
    let written = report::write_pictures(folder.path(), &into).unwrap();
    assert_eq!(written.len(), TITLES.len());
    for path in written {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("<svg") && text.contains("xmlns"),
            "{}",
            path.display()
        );
    }
}

/// Two test images with three neighbours each, of `channels`×2×2; some entries replaced.
fn neighbours(
    channels: usize,
    replace: &[(&str, Dtype, Vec<usize>)],
) -> (TempDir, std::path::PathBuf) {
    let folder = folder("", &ended());
    let mut layout: HashMap<String, (Dtype, Vec<usize>)> = HashMap::from([
        ("images".into(), (Dtype::U8, vec![2, channels, 2, 2])),
        ("labels".into(), (Dtype::U32, vec![2])),
    ]);
    for prefix in ["", "raw_"] {
        let name = |what| format!("{prefix}neighbour_{what}");
        layout.insert(name("images"), (Dtype::U8, vec![2, 3, channels, 2, 2]));
        layout.insert(name("labels"), (Dtype::U32, vec![2, 3]));
        layout.insert(name("similarities"), (Dtype::F32, vec![2, 3]));
    }
    for (name, dtype, shape) in replace {
        layout.insert((*name).into(), (*dtype, shape.clone()));
    }
    let bytes = vec![0; 4 * 2 * 3 * 4 * channels.max(1) * 4];
    let views = layout.iter().map(|(name, (dtype, shape))| {
        let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (
            name,
            TensorView::new(*dtype, shape.clone(), &bytes[..size]).unwrap(),
        )
    });
    let path = folder.path().join("neighbours.safetensors");
    let classes = HashMap::from([("classes".into(), r#"["T-shirt/<top>","Trouser"]"#.into())]);
    serialize_to_file(views, Some(classes), &path).unwrap();
    (folder, path)
}

#[test]
fn neighbours_are_pictures_within_the_page() {
    for channels in [1, 3] {
        let (folder, _) = neighbours(channels, &[]);
        let page = rendered(folder.path());
        assert_eq!(
            page.matches("data:image/png;base64,").count(),
            2 + 2 * 2 * 3
        );
        assert!(page.contains("T-shirt/&lt;top&gt;, right") && page.contains("3/3"));
    }
}

#[test]
fn damaged_neighbours_are_errors_that_name_the_entry() {
    let wrong: [(&str, Dtype, Vec<usize>); 5] = [
        ("images", Dtype::U8, vec![2, 2, 2, 2]),
        ("images", Dtype::U8, vec![2, 4]),
        ("labels", Dtype::U32, vec![3]),
        ("neighbour_labels", Dtype::F32, vec![2, 3]),
        ("raw_neighbour_images", Dtype::U8, vec![2, 3, 1, 2, 1]),
    ];
    for replaced in wrong {
        let (folder, path) = neighbours(1, std::slice::from_ref(&replaced));
        match report::write(folder.path()) {
            Err(Error::Data {
                path: named,
                reason,
            }) => {
                assert_eq!(named, path);
                assert!(reason.contains(replaced.0), "{reason}");
            }
            other => panic!("{replaced:?}: {other:?}"),
        }
    }
    let (folder, path) = neighbours(1, &[]);
    let whole = fs::read(&path).unwrap();
    for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(
            matches!(report::write(folder.path()), Err(Error::Data { .. })),
            "{cut}"
        );
    }
}
