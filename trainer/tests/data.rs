//! Reading images, and every way in which a file of them can be wrong.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use hardmix_trainer::config::TrainConfig;
use hardmix_trainer::data::{Dataset, Images};
use tempfile::{TempDir, tempdir};

fn load(path: &Path) -> Result<Dataset, String> {
    load_resized(path, None)
}

fn load_resized(path: &Path, image_size: Option<usize>) -> Result<Dataset, String> {
    let data = Some(path.to_owned());
    let config = TrainConfig {
        data,
        image_size,
        batch: 2,
        ..TrainConfig::default()
    };
    Dataset::load(&config).map_err(|error| error.to_string())
}

/// Asserts that loading fails with one sentence that names the file and says what is wrong.
fn assert_fails(folder: &Path, file: &str, reason: &str) {
    let error = load(folder).expect_err(file);
    assert!(error.contains(file) && error.contains(reason), "{error}");
}

fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = (0x800 + sizes.len() as u32).to_be_bytes().to_vec();
    sizes
        .iter()
        .for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const TRAIN: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";

/// Four training and two test images of 8×9.
fn idx_folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (split, count) in [("train", 4u32), ("t10k", 2)] {
        let pixels: Vec<u8> = (0..count * 72).map(|i| i as u8).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i % 3) as u8).collect();
        let file = |kind| folder.path().join(format!("{split}-{kind}-ubyte"));
        fs::write(file("images-idx3"), idx(&[count, 8, 9], &pixels)).unwrap();
        fs::write(file("labels-idx1"), idx(&[count], &labels)).unwrap();
    }
    folder
}

#[test]
fn embedded_images_are_balanced_and_apart() {
    let data = Dataset::load(&TrainConfig::default()).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (10_000, 3_000));
    for images in [&data.train, &data.test] {
        let count = |class| {
            images
                .labels
                .iter()
                .filter(|&&label| label == class)
                .count()
        };
        assert!((0..10).all(|class| count(class) * 10 == images.len()));
    }
    let held_out = TrainConfig {
        validation_images: 1_000,
        ..TrainConfig::default()
    };
    let held_out = Dataset::load(&held_out).unwrap();
    assert_eq!((held_out.train.len(), held_out.test.len()), (9_000, 1_000));
    assert_eq!(held_out.test.image(0), data.train.image(9_000));
    for (train_images, validation_images, left) in [
        (None, 10_000, 10_000),
        (None, usize::MAX, 10_000),
        (Some(500), 500, 500),
    ] {
        let config = TrainConfig {
            train_images,
            validation_images,
            ..TrainConfig::default()
        };
        let error = Dataset::load(&config).unwrap_err().to_string();
        let expected = format!("expected fewer than the {left} training images");
        assert_eq!(
            error,
            format!("validation_images is {validation_images}; {expected}")
        );
    }
    let few = TrainConfig {
        train_images: Some(100),
        ..TrainConfig::default()
    };
    let error = Dataset::load(&few).unwrap_err().to_string();
    assert_eq!(
        error,
        "batch is 128; expected at most the 100 training images"
    );
}

#[test]
fn idx_is_read_gzipped_or_not() {
    let folder = idx_folder();
    let plain = load(folder.path()).unwrap();
    assert_eq!(plain.train.shape.to_string(), "1×8×9");
    assert_eq!(plain.train.image(1)[..3], [72, 73, 74]);
    assert_eq!(plain.test.labels, [0, 1]);
    assert_eq!(plain.classes, ["0", "1", "2"]);
    let path = folder.path().join(TRAIN);
    let bytes = fs::read(&path).unwrap();
    fs::write(path.with_extension("gz"), gzip(&bytes)).unwrap();
    fs::rename(
        path.with_extension("gz"),
        folder.path().join(format!("{TRAIN}.gz")),
    )
    .unwrap();
    fs::remove_file(path).unwrap();
    assert_eq!(load(folder.path()).unwrap(), plain);
}

#[test]
fn wrong_idx_files_are_errors() {
    let whole = fs::read(idx_folder().path().join(TRAIN)).unwrap();
    let zipped = gzip(&whole);
    let mut flipped = zipped.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let cases: [(&[u8], &str); 10] = [
        (b"", "truncated"),
        (&whole[..1], "truncated"),
        (&whole[..10], "truncated"),
        (
            &whole[..whole.len() - 1],
            "holds 287 bytes of data; its header promises 288",
        ),
        (&[&whole[..], &[0]].concat(), "holds more bytes"),
        (&zipped[..zipped.len() / 2], "truncated"),
        (&flipped, "corrupt"),
        (
            &idx(&[4, 8], &[0; 32]),
            "starts with 0x00000802; expected 0x00000803",
        ),
        (&idx(&[0, 8, 9], &[]), "zero"),
        (&idx(&[u32::MAX; 3], &[]), "do not fit memory"),
    ];
    for (bytes, reason) in cases {
        let folder = idx_folder();
        fs::write(folder.path().join(TRAIN), bytes).unwrap();
        assert_fails(folder.path(), TRAIN, reason);
    }
    let folder = idx_folder();
    fs::write(folder.path().join(TRAIN_LABELS), idx(&[3], &[0; 3])).unwrap();
    assert_fails(folder.path(), TRAIN_LABELS, "3 labels for 4 images");
    fs::remove_file(folder.path().join(TRAIN_LABELS)).unwrap();
    assert_fails(folder.path(), TRAIN_LABELS, "holds no");
    let folder = idx_folder();
    let test = folder.path().join("t10k-images-idx3-ubyte");
    fs::write(test, idx(&[2, 9, 8], &[0; 144])).unwrap();
    assert!(
        load(folder.path())
            .unwrap_err()
            .contains("are 1×8×9, test images 1×9×8")
    );
}

fn cifar(labels: &[u8]) -> Vec<u8> {
    let record = |&label| [vec![label], (0..3072).map(|i| (i / 12) as u8).collect()].concat();
    labels.iter().flat_map(record).collect()
}

#[test]
fn cifar_is_read_and_checked() {
    let folder = tempdir().unwrap();
    let (train, test) = (
        folder.path().join("data_batch_1.bin"),
        folder.path().join("test_batch.bin"),
    );
    fs::write(&train, cifar(&[3, 9, 0])).unwrap();
    fs::write(&test, cifar(&[1])).unwrap();
    let data = load(folder.path()).unwrap();
    assert_eq!(
        (data.train.labels.as_slice(), data.test.labels.as_slice()),
        (&[3, 9, 0][..], &[1][..])
    );
    assert_eq!(data.train.shape.to_string(), "3×32×32");
    assert_eq!(data.train.image(2)[3071], 255);
    fs::write(&train, &cifar(&[3])[1..]).unwrap();
    assert_fails(
        folder.path(),
        "data_batch_1.bin",
        "3072 bytes; expected records of 3073",
    );
    fs::write(&train, cifar(&[3, 10])).unwrap();
    assert_fails(
        folder.path(),
        "data_batch_1.bin",
        "record 1 has label 10 of 10",
    );
    fs::write(&train, cifar(&[3])).unwrap();
    fs::remove_file(&test).unwrap();
    assert_fails(folder.path(), "test_batch.bin", "cannot read");
}

#[test]
fn a_size_for_images_that_are_not_resized_is_an_error() {
    let (idx, cifar_10) = (idx_folder(), tempdir().unwrap());
    fs::write(cifar_10.path().join("data_batch_1.bin"), cifar(&[3, 9])).unwrap();
    fs::write(cifar_10.path().join("test_batch.bin"), cifar(&[1])).unwrap();
    for data in [None, Some(idx.path()), Some(cifar_10.path())] {
        let config = TrainConfig {
            data: data.map(Path::to_owned),
            image_size: Some(32),
            batch: 2,
            ..TrainConfig::default()
        };
        let error = Dataset::load(&config).expect_err("a size").to_string();
        assert!(
            error.starts_with("image_size is 32; expected none"),
            "{error}"
        );
    }
}

fn write_image(path: &Path, side: u32, seed: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x, y| image::Rgb([x, y, seed].map(|v| (v * 16) as u8));
    image::RgbImage::from_fn(side, side, pixel)
        .save(path)
        .unwrap();
}

/// Of folders that are read class by class, a part must not be the first classes alone.
#[test]
fn any_part_of_class_folders_has_all_classes() {
    let folder = tempdir().unwrap();
    for part in ["train", "test"] {
        for (class, count) in [(0, 12), (1, 6), (2, 6)] {
            for index in 0..count {
                let name = format!("{part}/class-{class}/{index:02}.png");
                write_image(&folder.path().join(name), 8, class);
            }
        }
    }
    let part = |train_images, validation_images| {
        let config = TrainConfig {
            data: Some(folder.path().to_owned()),
            train_images,
            validation_images,
            batch: 2,
            ..TrainConfig::default()
        };
        Dataset::load(&config).expect("images")
    };
    let of_classes = |images: &Images| {
        let mut counts = [0; 3];
        for index in 0..images.len() {
            let label = images.labels[index];
            assert_eq!(
                images.image(index)[2 * 64],
                label as u8 * 16,
                "blue is the class"
            );
            counts[label as usize] += 1;
        }
        counts
    };
    assert_eq!(of_classes(&part(Some(8), 0).train), [4, 2, 2]);
    let held_out = part(None, 8);
    assert_eq!(of_classes(&held_out.train), [8, 4, 4]);
    assert_eq!(of_classes(&held_out.test), [4, 2, 2]);
}

#[test]
fn class_folders_are_read_split_or_not() {
    let folder = tempdir().unwrap();
    for class in ["ant", "bee"] {
        for index in 0..10 {
            write_image(
                &folder.path().join(class).join(format!("{index}.png")),
                9,
                index,
            );
        }
    }
    let data = load(folder.path()).unwrap();
    assert_eq!(data.classes, ["ant", "bee"]);
    assert_eq!((data.train.len(), data.test.len()), (18, 2));
    assert_eq!(data.test.labels, [0, 1]);
    // Planes of red (x), green (y) and blue (the index).
    assert_eq!(data.train.image(0)[..3], [0, 16, 32]);
    assert_eq!(data.train.image(0)[81 + 9], 16);
    assert_eq!(data.train.image(0)[162], 16);
    let resized = load_resized(folder.path(), Some(12)).unwrap();
    assert_eq!(resized.train.shape.to_string(), "3×12×12");

    let split = tempdir().unwrap();
    for part in ["train", "test"] {
        for class in ["ant", "bee"] {
            for index in 0..2 {
                write_image(
                    &split
                        .path()
                        .join(part)
                        .join(class)
                        .join(format!("{index}.jpg")),
                    9,
                    index,
                );
            }
        }
    }
    let data = load(split.path()).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (4, 4));
    fs::rename(
        split.path().join("test/bee"),
        split.path().join("test/wasp"),
    )
    .unwrap();
    assert_fails(split.path(), "test", "wasp");
}

/// Whichever file comes first decides nothing.
#[test]
fn images_are_gray_only_where_all_are() {
    let (size, gray) = (8, |x: u32, y: u32| image::Luma([(16 * x + y) as u8]));
    // Every tenth file is for the test: the first of these.
    for coloured in [None, Some(0), Some(1), Some(9)] {
        let folder = tempdir().unwrap();
        for index in 0..10 {
            let path = folder.path().join("ant").join(format!("{index}.png"));
            if Some(index) == coloured {
                write_image(&path, size, index);
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::GrayImage::from_fn(size, size, gray)
                .save(&path)
                .unwrap();
        }
        let data = load(folder.path()).unwrap();
        let channels = if coloured.is_some() { 3 } else { 1 };
        for images in [&data.train, &data.test] {
            assert_eq!(images.shape.channels, channels, "{coloured:?}");
            assert_eq!(images.pixels.len(), images.len() * channels * 64);
        }
        // The third file is the second of the training images.
        for plane in data.train.image(1).chunks(64) {
            assert_eq!(plane[..2], [0, 16], "{coloured:?}");
        }
        if coloured == Some(9) {
            assert_eq!(data.train.image(8)[128], 9 * 16, "blue is the index");
        }
    }
}

#[test]
fn wrong_images_are_errors() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join("ant").join(name);
    for name in ["0.png", "1.png", "2.png"] {
        write_image(&file(name), 9, 1);
    }
    let whole = fs::read(file("1.png")).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"", b"not an image"] {
        fs::write(file("1.png"), bytes).unwrap();
        assert_fails(folder.path(), "1.png", "");
    }
    write_image(&file("1.png"), 10, 1);
    assert_fails(folder.path(), ".png", "give an image size");
    assert!(load_resized(folder.path(), Some(9)).is_ok());
    let empty = tempdir().unwrap();
    assert_fails(
        empty.path(),
        "",
        "holds no IDX files, no CIFAR files and no class folders",
    );
    assert!(
        load(Path::new("no such folder"))
            .unwrap_err()
            .contains("cannot read no such folder")
    );
}
