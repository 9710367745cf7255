//! What another program has to make so that its images can stand beside ours: one row per image.

use anyhow::Result;

use crate::experiment::brought::Place;
use crate::experiment::plan::{Cell, Plan};
use crate::experiment::resolved::{Brought, Resolved, base_name};

/// One image.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Row {
    pub(crate) cell: String,
    pub(crate) model: String,
    /// Pixels relative to training.
    pub(crate) scale: f64,
    pub(crate) method: String,
    pub(crate) index: u64,
    /// Of images that are to be brought, where the experiment looks for them, from the folder in front of the pattern on; of
    /// others, their place in a run directory.
    pub(crate) file: String,
    pub(crate) prompt: String,
    pub(crate) negative_prompt: String,
    pub(crate) seed: u64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Training size.
    pub(crate) base_width: u32,
    pub(crate) base_height: u32,
    pub(crate) steps: u64,
    pub(crate) guidance_scale: f64,
    pub(crate) sampler: String,
    pub(crate) eta: f64,
}

/// Every image of an experiment, base-resolution ones included, in the order of the cells.
pub(crate) fn rows(resolved: &Resolved, plan: &Plan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for cell in &plan.cells {
        let seeds: Vec<u64> = cell.jobs.iter().map(|job| job.request.seed).collect();
        let pattern = pattern(resolved, cell);
        let model = &resolved.models[cell.model];
        let place = Place { model, scale: &cell.scale, seeds: &seeds };
        for (index, job) in cell.jobs.iter().enumerate() {
            rows.push(Row {
                cell: cell.name.clone(),
                model: model.name.clone(),
                scale: cell.scale.factor,
                method: cell.method_name.clone(),
                index: index as u64,
                file: match pattern {
                    Some(pattern) => place.file_name(pattern, index)?,
                    None => format!("{}/{index:06}.png", cell.name),
                },
                prompt: job.request.prompt.clone(),
                negative_prompt: job.request.negative_prompt.clone(),
                seed: job.request.seed,
                width: cell.width,
                height: cell.height,
                base_width: model.width,
                base_height: model.height,
                steps: job.request.steps as u64,
                guidance_scale: job.request.guidance_scale,
                sampler: cell.sampler.name.clone(),
                eta: job.request.eta,
            });
        }
    }
    Ok(rows)
}

/// Where the experiment looks for a cell's images, if others make them.
fn pattern<'a>(resolved: &'a Resolved, cell: &Cell) -> Option<&'a str> {
    let of = |name: &str| resolved.methods.iter().find(|method| method.name == name)?.images.as_ref();
    if let Some(Brought { images, .. }) = of(&cell.method_name) {
        return Some(images);
    }
    let own_base = resolved.methods.iter().find(|method| base_name(&method.name) == cell.method_name)?;
    own_base.images.as_ref()?.base.as_deref()
}
