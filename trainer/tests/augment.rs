//! Views of images, and what is no image to make one of.

use hardmix_trainer::augment::{Normalisation, ViewKey, plain, views};
use hardmix_trainer::config::Augment;
use hardmix_trainer::data::{Images, Shape};

const KEY: ViewKey = ViewKey {
    seed: 1,
    epoch: 0,
    view: 0,
};

/// So many images of this size, each pixel another.
fn images(count: usize, channels: usize, side: usize) -> Images {
    let shape = Shape {
        channels,
        height: side,
        width: side,
    };
    Images {
        pixels: (0..count * shape.len()).map(|i| (i * 7) as u8).collect(),
        labels: vec![0; count],
        shape,
    }
}

fn view(images: &Images, numbers: &[usize], augment: &Augment) -> Result<Vec<f32>, String> {
    let made = views(images, numbers, KEY, augment, &Normalisation::of(images));
    let made = made.and_then(|views| views.flatten_all()?.to_vec1());
    made.map_err(|error| error.to_string())
}

#[test]
fn a_view_depends_on_its_image_alone() {
    for channels in [1, 3] {
        let images = images(5, channels, 9);
        let size = images.shape.len();
        let together = view(&images, &[4, 0, 4], &Augment::default()).unwrap();
        assert_eq!(together[..size], together[2 * size..]);
        let alone = view(&images, &[0], &Augment::default()).unwrap();
        assert_eq!(alone, together[size..2 * size]);
        assert!(together.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn plain_images_have_mean_0_and_deviation_1() {
    let images = images(4, 3, 8);
    let normalisation = Normalisation::of(&images);
    let rows = plain(&images, 0..4, &normalisation).unwrap();
    let values: Vec<f32> = rows.flatten_all().unwrap().to_vec1().unwrap();
    let mean = |of: fn(f64) -> f64| values.iter().map(|&x| of(x.into())).sum::<f64>() / 768.0;
    // A few roundings of f32 on numbers below 2.
    assert!(mean(|x| x).abs() < 1e-5 && (mean(|x| x * x) - 1.0).abs() < 1e-5);
    let part = plain(&images, 1..3, &normalisation).unwrap();
    assert_eq!(
        part.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        values[192..576]
    );
}

#[test]
fn images_that_are_not_there_are_errors() {
    let some = images(3, 1, 8);
    let error = view(&some, &[0, 3], &Augment::default()).unwrap_err();
    assert!(
        error.contains("image 3 was asked for; expected less than 3"),
        "{error}"
    );
    assert!(view(&some, &[usize::MAX], &Augment::default()).is_err());
    let normalisation = Normalisation::of(&some);
    assert!(plain(&some, 2..4, &normalisation).is_err());
    assert_eq!(
        plain(&some, 3..3, &normalisation).unwrap().dims(),
        [0, 1, 8, 8]
    );
    // Fewer pixels than the labels promise.
    let mut cut = images(3, 1, 8);
    cut.pixels.truncate(100);
    assert!(view(&cut, &[0], &Augment::default()).is_ok());
    assert!(view(&cut, &[1], &Augment::default()).is_err());
    // Images without pixels, or of other channels.
    for (channels, side) in [(1, 0), (0, 8), (3, 8)] {
        let other = images(2, channels, side);
        assert!(
            plain(&other, 0..1, &normalisation).is_err(),
            "{channels}, {side}"
        );
    }
    for (count, side) in [(0, 0), (0, 8), (2, 0)] {
        let none = images(count, 1, side);
        assert!(
            view(&none, &[0], &Augment::default()).is_err(),
            "{count}, {side}"
        );
        assert_eq!(view(&none, &[], &Augment::default()).is_ok(), side > 0);
    }
    for crop_scale in [0.0, -1.0, 1.5, f32::NAN, f32::NEG_INFINITY] {
        let augment = Augment {
            crop_scale,
            ..Augment::default()
        };
        let error = view(&some, &[0], &augment).unwrap_err();
        assert!(error.contains("augment.crop_scale is"), "{error}");
    }
}
