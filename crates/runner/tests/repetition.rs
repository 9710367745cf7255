//! What moves the repetition score and what does not, on renders of the embedded emoji by the pocket Inception.

use std::path::Path;

use scalebench_emoji::{Split, emojis, prompt_order, render};
use scalebench_metrics::{
    Crops, Estimate, Extractor, FeatureSet, Image, Jackknife, Metric, Position, Preprocess, Sample, Scales, estimate, paired_difference,
};

const IMAGES: usize = 40;
const SIDE: usize = 128;

fn drawn(split: Split, i: usize, side: usize) -> Image {
    let emoji = &emojis()[prompt_order(0)[i]];
    Image::new(side, side, render(emoji, split.placement(emoji, 0), side as u32, side as u32).unwrap()).unwrap()
}

/// Features of the quarters of grey images, as `pocket-texture` has them.
fn features(extractor: &Extractor, images: impl Iterator<Item = Image>) -> FeatureSet {
    let samples = images.enumerate().map(|(i, image)| Sample::image(format!("{i}"), i as u32, image));
    let samples: Vec<Sample> = samples.collect();
    let size = |sample: &Sample| sample.decode().unwrap().width as u32 / 2;
    let size = size(&samples[0]);
    let crops = Crops { count: 4, size, position: Position::Grid, seed: 0, resize: true, scales: Scales::Native };
    extractor.features(samples, &Preprocess { grey: true, crops: Some(crops), ..Preprocess::default() }, |_| {}).unwrap()
}

/// Every pixel by where it comes from and what becomes of its colour.
fn changed(
    image: &Image,
    width: usize,
    height: usize,
    from: impl Fn(usize, usize) -> (usize, usize),
    colour: impl Fn([u8; 3]) -> [u8; 3],
) -> Image {
    let pixel = |i: usize| {
        let (x, y) = from(i % width, i / width);
        let at = 3 * (y * image.width + x);
        colour([image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]])
    };
    Image::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
}

#[test]
fn copies_repeat_and_shifts_crops_and_colours_do_not() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/pocket-inception");
    let extractor = Extractor::load(&folder).unwrap();
    let real = |side| (0..IMAGES).map(move |i| drawn(Split::Reference, i, side));
    let same = |pixel: [u8; 3]| pixel;
    let reference = features(&extractor, (0..IMAGES).map(|i| drawn(Split::Train, i, SIDE)));
    let plain = features(&extractor, real(SIDE));
    let score = |set: &FeatureSet| estimate(Metric::Repetition, set, Some(&reference), &Jackknife::STANDARD).unwrap();
    let moved = |set: &FeatureSet| -> Estimate {
        paired_difference(Metric::Repetition, (set, Some(&reference)), (&plain, Some(&reference)), &Jackknife::STANDARD).unwrap()
    };

    // Two by two copies of the small render: every quarter is the same.
    let tiled =
        features(&extractor, real(SIDE / 2).map(|image| changed(&image, SIDE, SIDE, |x, y| (x % (SIDE / 2), y % (SIDE / 2)), same)));
    let (of_real, of_tiled) = (score(&plain), score(&tiled));
    eprintln!("real {of_real:?}\ntiled {of_tiled:?}");
    assert!(of_real.lo < 0.0 && of_real.hi > 0.0, "{of_real:?}");
    assert!(of_tiled.lo > of_real.hi + 0.3, "{of_tiled:?} {of_real:?}");

    // Copies that differ: the quarters show the same emoji in four placements.
    let placed = |i: usize| -> Image {
        let emoji = &emojis()[prompt_order(0)[i]];
        let half = SIDE / 2;
        let quarters: Vec<Vec<u8>> =
            (1..5).map(|view| render(emoji, Split::Reference.placement(emoji, view), half as u32, half as u32).unwrap()).collect();
        let pixel = |at: usize| {
            let (x, y) = (at % SIDE, at / SIDE);
            let (quarter, inside) = (2 * (y / half) + x / half, 3 * (y % half * half + x % half));
            [quarters[quarter][inside], quarters[quarter][inside + 1], quarters[quarter][inside + 2]]
        };
        Image::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect()).unwrap()
    };
    let repeated = score(&features(&extractor, (0..IMAGES).map(placed)));
    eprintln!("four placements {repeated:?}");
    assert!(repeated.lo > of_real.hi, "{repeated:?} {of_real:?}");

    // Shifted by 8 pixels, edges repeated; cut by a sixteenth at each side; half of the colour.
    let edge = |x: usize| x.saturating_sub(8);
    let shifted = real(SIDE).map(|image| changed(&image, SIDE, SIDE, |x, y| (edge(x), edge(y)), same));
    let cut = real(SIDE).map(|image| changed(&image, SIDE - 16, SIDE - 16, |x, y| (x + 8, y + 8), same));
    let paler = |[r, g, b]: [u8; 3]| {
        let luma = (u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16;
        let mix = |v: u8| (u32::from(v) + luma) / 2;
        [mix(r) as u8, mix(g) as u8, mix(b) as u8]
    };
    let recoloured = real(SIDE).map(|image| changed(&image, SIDE, SIDE, |x, y| (x, y), paler));
    for (what, set) in
        [("shift", features(&extractor, shifted)), ("crop", features(&extractor, cut)), ("colour", features(&extractor, recoloured))]
    {
        let by = moved(&set);
        eprintln!("{what} {by:?}");
        assert!(by.value.abs() < 0.1, "{what}: {by:?}");
    }
}
