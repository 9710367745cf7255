//! Runs that were never made, for tests.

use std::path::Path;

use scalebench_metrics::{FeatureSet, Tap};

use crate::compare::finished::Run;
use crate::experiment::plan::outline;
use crate::experiment::protocol::{self, Against};
use crate::experiment::resolved::{FeatureNetwork, Images, Method, Metrics, Model, Prompts, Reference, Resolved, Sampler, Scale};
use crate::run::file::{RUN_FILE, RunFile};
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, Timing, manifest_file};

/// An experiment of `images` images a cell: a base cell and two methods at 4×.
pub(crate) fn resolved(images: usize) -> Resolved {
    let method = |name: &str| Method {
        name: name.into(),
        title: name.into(),
        images: None,
        settings: serde_yaml::Value::Null,
        variant_of: None,
        set: Default::default(),
        sampler: None,
        seed: None,
    };
    Resolved {
        name: "made-up".into(),
        question: None,
        tool: "scalebench test".into(),
        models: vec![Model {
            name: "m".into(),
            family: "pocket".into(),
            path: "pocket".into(),
            motion_adapter: None,
            variant: None,
            dtype: scalebench_generation::Dtype::default(),
            digest: "checkpoint".into(),
            width: 64,
            height: 64,
            set: Default::default(),
        }],
        methods: vec![method("direct-inf"), method("other")],
        scales: vec![Scale { factor: 4.0, width: 2.0, height: 2.0 }],
        images: Images::Every(images),
        video: None,
        prompts: Prompts::Emoji { seed: 0 },
        seed: 0,
        sampler: Sampler {
            name: "ddim".into(),
            steps: 2,
            eta: 0.0,
            guidance_scale: 1.0,
            guidance_rescale: 0.0,
            negative_prompt: String::new(),
            schedule: Default::default(),
            size_conditioning: Default::default(),
            vae_decode: Default::default(),
            seed_once_per_batch_of: None,
            jpeg_quality: None,
        },
        reference: Reference::Emoji { images: 64, seed: 0 },
        metrics: Metrics {
            protocol: protocol::find("pocket", Path::new("")).unwrap(),
            networks: vec![FeatureNetwork {
                network: protocol::Network::Inception,
                path: "inception".into(),
                features: "inception-v3-fid/w1/2048".into(),
                digest: "weights".into(),
                comparable: false,
            }],
        },
        upscalers: Default::default(),
    }
}

/// How a made-up run differs from the plain one.
#[derive(Clone)]
pub(crate) struct Change {
    /// Draws the images; equal seeds draw equal ones.
    pub(crate) draw: u64,
    /// The cell that is worse, and by how much.
    pub(crate) worse: Option<(&'static str, f64)>,
    /// The cell that is slower, and how many times.
    pub(crate) slower: Option<(&'static str, f64)>,
    /// The cell that takes more memory, and how many times.
    pub(crate) larger: Option<(&'static str, f64)>,
    pub(crate) first_prompt: usize,
}

pub(crate) const PLAIN: Change = Change { draw: 0, worse: None, slower: None, larger: None, first_prompt: 0 };

/// splitmix64, <https://prng.di.unimi.it/splitmix64.c>, through Box and Muller.
struct Normals(u64);

impl Normals {
    fn of(key: impl std::fmt::Display) -> Normals {
        Normals(u64::from_le_bytes(*blake3::hash(key.to_string().as_bytes()).as_bytes().first_chunk().unwrap()))
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

const DIM: usize = 16;

/// Features as a pooled network has them, positive and skewed: half of the variance belongs to the prompt, the
/// rest to the seed and, for crops, to the place.
fn features(what: &str, prompts: &[usize], crops: usize, draw: u64, shift: f64) -> (Vec<u32>, Vec<f32>) {
    let (mut groups, mut data) = (Vec::new(), Vec::new());
    for (i, prompt) in prompts.iter().enumerate() {
        for crop in 0..crops {
            let mut of_prompt = Normals::of(format!("prompt {prompt}"));
            let mut of_seed = Normals::of(format!("{what} {i} {draw}"));
            let mut of_crop = Normals::of(format!("{what} {i} {draw} {crop}"));
            groups.push(i as u32);
            data.extend((0..DIM).map(|_| {
                let z = 0.7 * of_prompt.next() + 0.6 * of_seed.next() + 0.4 * of_crop.next();
                (0.6 * z + shift).exp() as f32
            }));
        }
    }
    (groups, data)
}

/// Writes what a comparison reads of a finished run.
pub(crate) fn write(folder: &Path, resolved: &Resolved, change: &Change) {
    let store = Store::new(folder, Shard::WHOLE);
    let file = RunFile { command: String::new(), machine: None, experiment: resolved.clone() };
    store.write(RUN_FILE, serde_yaml::to_string(&file).unwrap().as_bytes()).unwrap();
    std::fs::create_dir_all(store.path("features")).unwrap();
    let prompts: Vec<usize> = (change.first_prompt..change.first_prompt + resolved.images.most()).collect();
    let shift = |cell: &str| change.worse.filter(|(worse, _)| *worse == cell).map_or(0.0, |(_, shift)| shift);
    for cell in outline(resolved) {
        let line = |(index, prompt): (usize, &usize)| {
            let key = format!("{} {prompt} {} {} {}", cell.name, resolved.seed, change.draw, shift(&cell.name));
            let blake3 = blake3::hash(key.as_bytes()).to_string();
            ManifestLine { index, prompt: format!("prompt {prompt}"), seed: resolved.seed + index as u64, key, blake3, brought: None }
        };
        let lines: Vec<ManifestLine> = prompts[..cell.images].iter().enumerate().map(line).collect();
        store.write_lines(&manifest_file(&cell.name), &lines).unwrap();
        let slower = change.slower.filter(|(slower, _)| *slower == cell.name).map_or(1.0, |(_, ratio)| ratio);
        let larger = change.larger.filter(|(larger, _)| *larger == cell.name).map_or(1.0, |(_, ratio)| ratio);
        // Now and then a second run takes half as long again, as beside other work.
        let mut noise = Normals::of(format!("{} {} {slower} times", cell.name, change.draw));
        let mut pages = Normals::of(format!("{} {} {larger} pages", cell.name, change.draw));
        let mut seconds = || 2.0 * slower * (0.04 * noise.next()).exp() * if noise.uniform() < 0.1 { 1.5 } else { 1.0 };
        let timings: Vec<Timing> = (0..cell.images)
            .map(|index| Timing {
                index,
                seconds: seconds(),
                processor_seconds: Some(2.0 + 0.01 * (index % 3) as f64),
                // Pages come and go, by some hundredths.
                peak_memory_bytes: Some((3e8 * larger * (1.0 + 0.01 * pages.uniform())) as u64),
            })
            .collect();
        store.write_lines(&store.timings(&cell.name), &timings).unwrap();
    }
    let run = Run::open(folder).unwrap();
    for cell in &run.cells {
        for columns in &resolved.metrics.protocol.compare {
            let crops = columns.generated.crops.map_or(1, |crops| crops.count as usize);
            let metric = columns.metrics[0];
            let save = |file: Option<String>, (groups, data): (Vec<u32>, Vec<f32>)| {
                let Some(file) = file else { return };
                let names = groups.iter().map(u32::to_string).collect();
                let provenance = run.provenance(columns, Tap::Features, Default::default()).unwrap();
                FeatureSet::new(names, groups, data, DIM, provenance).unwrap().save(&store.path(&file)).unwrap();
            };
            let name = &cell.outline.name;
            let scored = &prompts[..cell.outline.n_scored];
            let what = format!("{name} {}", columns.id);
            save(run.generated_file(cell, columns, metric).unwrap(), features(&what, scored, crops, change.draw, shift(name)));
            let other = match columns.against {
                Against::Base => features("base", scored, 1, change.draw, 0.0),
                // Other prompts, and the same reference whatever the run.
                _ => features("reference", &(1000..1064).collect::<Vec<_>>(), 1, 0, 0.2),
            };
            save(run.other_file(cell, columns, metric).unwrap(), other);
        }
    }
}
