//! Cells, and the images in them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use scalebench_generation::{Blueprint, Dtype, Method, Request, Seeding};
use serde::Serialize;
use serde_json::json;

use crate::experiment::brought::File;
use crate::experiment::resolve::Inputs;
use crate::experiment::resolved::{self, Model, Resolved, Sampler, Scale, base_name, cell_name};

/// Everything that a run makes, in order.
pub(crate) struct Plan {
    pub(crate) cells: Vec<Cell>,
    /// Frames a second of videos.
    pub(crate) fps: f64,
}

/// One model at one size under one method, by one sampler.
pub(crate) struct Cell {
    /// `MODEL/SCALE-METHOD`, the folder under `cells/`.
    pub(crate) name: String,
    /// Index of the model.
    pub(crate) model: usize,
    pub(crate) scale: Scale,
    pub(crate) method_name: String,
    pub(crate) work: Work,
    pub(crate) sampler: Sampler,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Whether it is a row of the results, or only made because `_b` scores need it.
    pub(crate) asked_for: bool,
    pub(crate) jobs: Vec<Job>,
    /// The first images, which its own scores are of; the others are there for larger cells to be compared with.
    pub(crate) n_scored: usize,
}

/// Where a cell's images come from.
pub(crate) enum Work {
    /// They are sampled.
    Sample(Box<Method>),
    /// Another program made them: a file for each, none where they are named alone.
    Bring(Vec<File>),
}

/// One image.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Digest of everything that the image is a function of.
    pub(crate) key: String,
}

/// What a cell is, before anything is loaded.
pub(crate) struct Outline {
    /// See [`Cell::name`].
    pub(crate) name: String,
    /// Index of the model.
    pub(crate) model: usize,
    pub(crate) scale: Scale,
    pub(crate) method: String,
    /// The first image's.
    pub(crate) seed: u64,
    pub(crate) asked_for: bool,
    /// Images that are made.
    pub(crate) images: usize,
    /// See [`Cell::n_scored`].
    pub(crate) n_scored: usize,
}

/// Every cell of an experiment of which there are or will be images, in order. Base-resolution images of every seed are always
/// among them, since `_b` scores need them; of methods that bring their own, those.
pub(crate) fn outline(resolved: &Resolved) -> Vec<Outline> {
    let mut cells = Vec::new();
    for (model, described) in resolved.models.iter().enumerate() {
        let cell = |scale: &Scale, method: &str, seed: u64, asked_for: bool| Outline {
            // What others are compared with is enough for all of them.
            images: match !asked_for || *scale == Scale::BASE && method == resolved.base_method(seed) {
                true => resolved.images.most(),
                false => resolved.images.at(scale),
            },
            n_scored: if asked_for { resolved.images.at(scale) } else { resolved.images.most() },
            name: cell_name(&described.name, scale, method),
            model,
            scale: *scale,
            method: method.to_owned(),
            seed,
            asked_for,
        };
        let asked: Vec<(&Scale, &str)> =
            resolved.scales.iter().flat_map(|scale| resolved.methods.iter().map(move |method| (scale, method.name.as_str()))).collect();
        let bases: BTreeSet<(u64, String)> =
            resolved.methods.iter().map(|method| (resolved.seed_of(&method.name), resolved.base_of(&method.name))).collect();
        for (seed, base) in bases {
            if !asked.iter().any(|(scale, method)| **scale == Scale::BASE && *method == base) {
                cells.push(cell(&Scale::BASE, &base, seed, false));
            }
        }
        cells.extend(asked.into_iter().map(|(scale, method)| cell(scale, method, resolved.seed_of(method), true)));
    }
    cells.retain(|cell| !resolved.is_missing(&cell.name));
    cells
}

/// Plans and checks every cell; nothing is made yet, so that no error comes late.
pub(crate) fn plan(resolved: &Resolved, inputs: &Inputs) -> Result<Plan> {
    let mut cells = Vec::new();
    for Outline { name, model, scale, method: method_name, seed, asked_for, images, n_scored } in outline(resolved) {
        let (described, checkpoint) = (&resolved.models[model], &inputs.blueprints[model]);
        // What `_b` scores compare with is plain sampling, whatever the experiment calls by its name.
        let configured = inputs.methods.iter().find(|known| asked_for && known.spec.name() == method_name);
        let sampler = if asked_for { resolved.sampler_of(&method_name) } else { &resolved.sampler };
        let cell = || -> Result<Cell> {
            let (width, height) = described.size(&scale).context("scales")?;
            let brought = inputs.brought.get(&name).cloned().or_else(|| is_brought(resolved, &method_name).then(Vec::new));
            let work = match (brought, configured) {
                (Some(files), _) => Work::Bring(files),
                (None, Some(configured)) => {
                    Work::Sample(Box::new(configured.resolve(&described.family, scale.factor, checkpoint.sites())?))
                }
                (None, None) => Work::Sample(Box::new(inputs.baseline.resolve(&described.family, scale.factor, checkpoint.sites())?)),
            };
            let request = |i: usize| -> Result<Request> {
                Ok(Request {
                    prompt: inputs.prompts[i].clone(),
                    negative_prompt: sampler.negative_prompt.clone(),
                    width,
                    height,
                    steps: sampler.steps,
                    sampler: sampler.kind()?,
                    guidance_scale: sampler.guidance_scale,
                    guidance_rescale: sampler.guidance_rescale,
                    schedule: sampler.schedule,
                    eta: sampler.eta,
                    seed: sampler.seed_of_image(seed, i),
                    size_conditioning: sampler.size_conditioning,
                    vae_decode: sampler.vae_decode,
                    seeding: match sampler.seed_once_per_batch_of {
                        None => Seeding::PerImage,
                        Some(batch) => Seeding::Batched { batch, row: i % batch },
                    },
                    frames: resolved.frames(),
                })
            };
            let mut jobs = Vec::with_capacity(images);
            for i in 0..images {
                let request = request(i)?;
                let key = match &work {
                    Work::Sample(method) => {
                        checkpoint.check(&request, method)?;
                        key(described, checkpoint, method, &request, sampler.jpeg_quality)?
                    }
                    Work::Bring(files) => brought_key(files.get(i), &request),
                };
                jobs.push(Job { request, key });
            }
            let (name, method_name, sampler) = (name.clone(), method_name.clone(), sampler.clone());
            Ok(Cell { name, model, scale, method_name, work, sampler, width, height, asked_for, jobs, n_scored })
        };
        cells.push(cell().with_context(|| format!("cell {name}"))?);
    }
    Ok(Plan { cells, fps: resolved.video.map_or(1.0, |video| video.fps) })
}

/// The run-store key of an image: equal keys, equal pixels.
fn key(model: &Model, checkpoint: &Blueprint, method: &Method, request: &Request, jpeg_quality: Option<u8>) -> Result<String> {
    #[derive(Serialize)]
    struct Identity<'a> {
        checkpoint: &'a str,
        method: &'a Method,
        request: &'a Request,
        dtype: Dtype,
        jpeg_quality: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        upscaler: Option<String>,
    }
    let ending = checkpoint.ending(request, method)?;
    let upscaler = ending.and_then(|ending| ending.upscaler).map(|(upscaler, _)| upscaler.digest().to_owned());
    let identity = Identity { checkpoint: &model.digest, method, request, dtype: model.dtype, jpeg_quality, upscaler };
    // Through a value: its maps are sorted, so the key does not depend on the order of fields.
    let canonical = serde_json::to_value(identity)?.to_string();
    Ok(blake3::hash(canonical.as_bytes()).to_string())
}

/// The same of an image that was brought: the file, and what it is taken to show.
fn brought_key(file: Option<&File>, request: &Request) -> String {
    let digest = file.map(|file| file.digest.as_str());
    let identity = json!({ "brought": digest, "prompt": request.prompt, "seed": request.seed, "size": [request.width, request.height] });
    blake3::hash(identity.to_string().as_bytes()).to_string()
}

/// Whether a method's images, or the base-resolution images of that name, are another program's.
fn is_brought(resolved: &Resolved, name: &str) -> bool {
    let own_base =
        |method: &resolved::Method| method.images.as_ref().is_some_and(|brought| brought.base.is_some()) && base_name(&method.name) == name;
    resolved.methods.iter().any(|method| method.images.is_some() && method.name == name || own_base(method))
}

impl Plan {
    /// The cell of a model at a scale under a method.
    pub(crate) fn find(&self, model: usize, scale: &Scale, method: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.model == model && cell.scale == *scale && cell.method_name == method)
    }
}
