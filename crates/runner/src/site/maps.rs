//! What the built-in methods do, drawn: on the pocket model, whose layers this program has with it.

use anyhow::Result;
use scalebench_generation::{Dtype, Pipeline, Request, Sampler, ScheduleOptions, Seeding, SizeConditioning, VaeDecode};

use crate::experiment::methods;
use crate::experiment::upscalers::Upscalers;
use crate::host::data;
use crate::report::heatmap;
use crate::report::page::ScheduleMap;
use crate::run::schedule;

/// Factors at which methods are drawn.
const SCALES: [u32; 2] = [4, 16];
/// Steps that are drawn: what authors count in.
const STEPS: usize = 50;

pub(super) struct Maps {
    pipeline: Pipeline,
    /// What methods enlarge with: it is said in words.
    upscalers: Upscalers,
}

impl Maps {
    pub(super) fn new() -> Result<Maps> {
        let pipeline = Pipeline::load(&data::located("scalebench:datasets/pocket".as_ref())?)?;
        Ok(Maps { pipeline, upscalers: Upscalers::default() })
    }

    /// The maps of a built-in method: none at scales that it has no settings for.
    pub(super) fn of(&mut self, name: &str) -> Result<Vec<ScheduleMap>> {
        let spec = methods::find(name, "".as_ref())?;
        let mut found = Vec::new();
        for scale in SCALES {
            let side = self.pipeline.native_size().0 * scale.isqrt();
            let Ok(method) = spec.resolve("pocket", f64::from(scale), self.pipeline.sites()) else { continue };
            if let Some((name, upscaler)) = self.upscalers.find(&method, Dtype::F32, "".as_ref())? {
                self.pipeline.lend_upscaler(&name, upscaler);
            }
            let Ok(schedule) = schedule::of(&self.pipeline, &request(side), &method) else { continue };
            found.push((format!("pocket, {scale}× ({side}×{side})"), schedule));
        }
        let largest = found.iter().map(|(_, schedule)| heatmap::largest_dilation(schedule)).fold(1.0, f64::max);
        let map = |(place, schedule): (String, schedule::Schedule)| ScheduleMap {
            place,
            method: spec.title().to_owned(),
            description: schedule::describe(&schedule),
            svg: heatmap::draw(&schedule, largest),
        };
        Ok(found.into_iter().map(map).collect())
    }
}

fn request(side: u32) -> Request {
    Request {
        prompt: String::new(),
        negative_prompt: String::new(),
        width: side,
        height: side,
        steps: STEPS,
        sampler: Sampler::Ddim,
        schedule: ScheduleOptions::default(),
        guidance_scale: 3.5,
        guidance_rescale: 0.0,
        eta: 0.0,
        seed: 0,
        size_conditioning: SizeConditioning::Target,
        vae_decode: VaeDecode::Whole,
        frames: 1,
        seeding: Seeding::PerImage,
    }
}
