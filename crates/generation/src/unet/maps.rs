//! Maps of cross-attentions: on their way from one pass to later ones ([`MapTape`]), and how an image's pixels attend to its prompt
//! ([`PromptMaps`]).

use crate::error::Result;
use crate::step::{Conditioning, Maps};
use candle_core::Tensor;
use scalebench_kernels as kernels;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What is kept of a run's maps: for each conditioning one, `(images, tokens, text tokens)`.
#[derive(Debug, Default)]
pub(crate) struct MapStore(HashMap<Conditioning, Tensor>);

/// The maps of one pass, or of several in a batch.
#[derive(Debug, Default)]
pub(super) struct MapTape {
    /// What is taken `(batch, tokens, text tokens)`, and its share.
    lent: Option<(Tensor, f64)>,
    /// Sums and counts of what is kept, for each size, in the order in which the sizes come.
    seen: Option<Mutex<Vec<(Tensor, usize)>>>,
}

impl MapStore {
    /// What a batch of passes on these conditionings begins with.
    pub(super) fn lend(&self, maps: Maps, conditionings: &[Conditioning]) -> Result<MapTape> {
        let kept: Option<Vec<&Tensor>> = conditionings.iter().map(|conditioning| self.0.get(conditioning)).collect();
        let lent = match kept {
            Some(kept) if maps.reuse != 0.0 => Some((Tensor::cat(&kept, 0)?, maps.reuse)),
            _ => None,
        };
        Ok(MapTape { lent, seen: maps.keep.then(Mutex::default) })
    }

    /// Keeps what the batch has seen.
    pub(super) fn keep(&mut self, tape: MapTape, conditionings: &[Conditioning]) -> Result<()> {
        let Some(seen) = tape.seen else { return Ok(()) };
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(tokens) = seen.iter().map(|(sum, _)| sum.dims()[1]).max() else { return Ok(()) };
        let mut mean: Option<Tensor> = None;
        for (sum, count) in &seen {
            let part = (resized(sum, tokens)? * (1.0 / (count * seen.len()) as f64))?;
            mean = Some(mean.map_or(Ok(part.clone()), |mean| mean + part)?);
        }
        let mean = mean.expect("there is a largest size");
        for (conditioning, map) in conditionings.iter().zip(mean.chunk(conditionings.len(), 0)?) {
            self.0.insert(*conditioning, map.contiguous()?);
        }
        Ok(())
    }
}

impl MapTape {
    /// Whether nothing is taken and nothing kept.
    pub(super) fn is_idle(&self) -> bool {
        self.lent.is_none() && self.seen.is_none()
    }

    /// Keeps an attention's map, if maps are kept.
    pub(super) fn see(&self, map: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let map = map()?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.iter_mut().find(|(sum, _)| sum.dims() == map.dims()) {
            Some((sum, count)) => (*sum, *count) = ((&*sum + map)?, *count + 1),
            None => seen.push((map, 1)),
        }
        Ok(())
    }

    /// An attention's result from values `v`, mixed with what the lent map makes of them.
    pub(super) fn mixed(&self, found: Tensor, v: &Tensor) -> Result<Tensor> {
        let Some((map, share)) = &self.lent else { return Ok(found) };
        let other = kernels::mapped_values(&resized(map, found.dims()[1])?, v)?;
        Ok(((found * (1.0 - share))? + (other * *share)?)?)
    }
}

/// Maps of one shape, added up as they come.
#[derive(Debug, Default)]
pub(crate) struct MapSum(Option<(Tensor, usize)>);

impl MapSum {
    pub(crate) fn add(&mut self, map: Tensor) -> Result<()> {
        self.0 = Some(match self.0.take() {
            None => (map, 1),
            Some((sum, n)) => ((sum + map)?, n + 1),
        });
        Ok(())
    }

    /// None if none came.
    pub(crate) fn mean(self) -> Result<Option<Tensor>> {
        self.0.map(|(sum, n)| Ok((sum / n as f64)?)).transpose()
    }
}

/// Cross-attention maps beside chosen self-attentions, `(batch, pixels, tokens)`, on the CPU. All are of one size.
pub(crate) struct PromptMaps<'a> {
    /// Indices of the self-attentions.
    sites: &'a [usize],
    seen: Mutex<MapSum>,
}

impl<'a> PromptMaps<'a> {
    pub(super) fn of(sites: &'a [usize]) -> Self {
        Self { sites, seen: Mutex::default() }
    }

    /// Whether nothing is kept.
    pub(super) fn is_idle(&self) -> bool {
        self.sites.is_empty()
    }

    /// Keeps the map of `site`, if it is one that is kept.
    pub(super) fn see(&self, site: usize, map: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if !self.sites.contains(&site) {
            return Ok(());
        }
        let map = map()?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).add(map)
    }

    /// Rows `from..from + n` of the mean over what was kept.
    pub(super) fn mean(self, from: usize, n: usize) -> Result<Option<Tensor>> {
        let mean = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner).mean()?;
        mean.map(|mean| Ok(mean.narrow(0, from, n)?)).transpose()
    }
}

/// A map at another number of tokens: bilinear along the row of tokens, whatever lines of the image they lie in.
fn resized(map: &Tensor, tokens: usize) -> Result<Tensor> {
    Ok(kernels::resize_bilinear(&map.unsqueeze(1)?, tokens, map.dims()[2])?.squeeze(1)?)
}
