//! A finished run, or what was kept of one: description, manifests, features and timings, without network or image.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::{FeatureSet, Metric, Preprocess, Provenance, Stored, Tap};

use crate::experiment::plan::{Outline, outline};
use crate::experiment::protocol::{Against, Comparison as Columns};
use crate::experiment::resolved::{Resolved, Scale, cell_name};
use crate::run::file::{RUN_FILE, RunFile};
use crate::run::score::{Other, feature_file, prompt_scores_identity, reference_identity};
use crate::run::seal::{self, CHECKSUMS};
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, manifest_file};

/// A finished run, or what was kept of one.
pub(crate) struct Run {
    pub(crate) shown: String,
    store: Store,
    pub(crate) resolved: Resolved,
    pub(crate) cells: Vec<RunCell>,
}

/// One cell of it.
pub(crate) struct RunCell {
    pub(crate) outline: Outline,
    pub(crate) manifest: Vec<ManifestLine>,
}

/// Features of a cell and of what it is compared with, for one column.
pub(crate) struct Sides {
    pub(crate) generated: FeatureSet,
    pub(crate) other: Other,
}

impl Run {
    /// Reads the description and the manifests of a run.
    pub(crate) fn open(folder: &Path) -> Result<Run> {
        let shown = folder.display().to_string();
        ensure!(folder.is_dir(), "{shown}: expected a run directory, found none");
        let store = Store::new(folder, Shard::WHOLE);
        let resolved = RunFile::read(&store)?.experiment;
        let cell = |outline: Outline| -> Result<RunCell> {
            let file = manifest_file(&outline.name);
            let manifest: Vec<ManifestLine> = seal::read_lines(&store, &file)?;
            ensure!(
                manifest.len() == outline.images,
                "{}: expected {} images of a finished run, found {}",
                store.path(&file).display(),
                outline.images,
                manifest.len()
            );
            Ok(RunCell { outline, manifest })
        };
        let cells = outline(&resolved).into_iter().map(cell).collect::<Result<_>>()?;
        Ok(Run { shown, store, resolved, cells })
    }

    /// What every file is called that [`Run::open`] and the comparison read, relative to the run directory.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let mut files = vec![RUN_FILE.to_owned()];
        if self.store.path(CHECKSUMS).is_file() {
            files.push(CHECKSUMS.to_owned());
        }
        for cell in &self.cells {
            files.push(manifest_file(&cell.outline.name));
            files.extend(self.store.timing_files(&cell.outline.name));
            for columns in &self.resolved.metrics.protocol.compare {
                for metric in &columns.metrics {
                    files.extend(self.generated_file(cell, columns, *metric)?);
                    files.extend(self.other_file(cell, columns, *metric)?);
                }
            }
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn find(&self, name: &str) -> Option<&RunCell> {
        self.cells.iter().find(|cell| cell.outline.name == name)
    }

    fn size(&self, cell: &Outline) -> Result<(u32, u32)> {
        self.resolved.models[cell.model].size(&cell.scale)
    }

    fn base_size(&self, cell: &Outline) -> u32 {
        let model = &self.resolved.models[cell.model];
        model.width.min(model.height)
    }

    pub(crate) fn provenance(&self, columns: &Columns, tap: Tap, preprocess: Preprocess) -> Result<Provenance> {
        let network = self.resolved.metrics.networks.iter().find(|network| network.network == columns.network);
        let network = network.with_context(|| format!("{}: {RUN_FILE}: expected {:?} among the networks", self.shown, columns.network))?;
        Ok(network.provenance(tap, preprocess))
    }

    /// The feature file of a cell's images for a metric; None where the cell would be compared with itself, was not asked for, or the
    /// reference cannot serve the metric.
    pub(crate) fn generated_file(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<String>> {
        let is_base = cell.outline.scale == Scale::BASE && cell.outline.method == self.resolved.base_of(&cell.outline.method);
        let is_absent = self.resolved.absence(columns, metric).is_some();
        if !cell.outline.asked_for || is_absent || is_base && columns.against == Against::Base {
            return Ok(None);
        }
        let preprocess = columns.generated(self.resolved.seed, self.base_size(&cell.outline), self.size(&cell.outline)?);
        let keys = keys(cell.scored());
        let provenance = match metric.video_measure() {
            Some(of) => of.provenance(columns.clip),
            None => self.provenance(columns, metric.tap(), preprocess)?,
        };
        let file = match columns.against {
            Against::Prompts => feature_file(&provenance, &prompt_scores_identity(&keys))?,
            Against::Reference | Against::Base => feature_file(&provenance, &keys)?,
        };
        Ok(Some(file))
    }

    /// The feature file of what a cell is compared with.
    pub(crate) fn other_file(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<String>> {
        if !cell.outline.asked_for || !metric.needs_reference() || self.resolved.absence(columns, metric).is_some() {
            return Ok(None);
        }
        let (seed, base) = (self.resolved.seed, self.base_size(&cell.outline));
        let file = match columns.against {
            Against::Prompts => return Ok(None),
            Against::Reference => {
                let (width, height) = self.size(&cell.outline)?;
                let provenance = self.provenance(columns, Tap::Features, columns.other(seed, base, (width, height)))?;
                feature_file(&provenance, &reference_identity(&self.resolved, width, height))?
            }
            Against::Base => {
                let model = &self.resolved.models[cell.outline.model];
                let name = cell_name(&model.name, &Scale::BASE, &self.resolved.base_of(&cell.outline.method));
                let base_cell = self.find(&name).with_context(|| format!("{}: cell {name} is missing", self.shown))?;
                let provenance = self.provenance(columns, Tap::Features, columns.other(seed, base, self.size(&base_cell.outline)?))?;
                feature_file(&provenance, &keys(&base_cell.manifest[..cell.outline.n_scored]))?
            }
        };
        Ok(Some(file))
    }

    fn stored(&self, file: &str) -> Result<Other> {
        let path = self.store.path(file);
        let again = || format!("{}: expected the features of a finished run; the same `scalebench sweep` restores them", self.shown);
        ensure!(path.is_file(), "{} ({} is missing)", again(), file);
        match Stored::load(&path).with_context(again)? {
            Stored::Features(features) => Ok(Other::Features(features)),
            Stored::Statistics(found) => Ok(Other::Statistics(found.statistics)),
            Stored::Array(_) => bail!("{} ({file} is of another tool)", again()),
        }
    }

    fn features(&self, file: &str) -> Result<FeatureSet> {
        match self.stored(file)? {
            Other::Features(features) => Ok(features),
            Other::Statistics(_) | Other::None => bail!("{}: {file}: expected features, found statistics", self.shown),
        }
    }

    /// Both sides of a column; None where the column is empty for this cell.
    pub(crate) fn sides(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<Sides>> {
        let Some(generated) = self.generated_file(cell, columns, metric)? else { return Ok(None) };
        let other = self.other_file(cell, columns, metric)?.map(|file| self.stored(&file)).transpose()?;
        Ok(Some(Sides { generated: self.features(&generated)?, other: other.unwrap_or(Other::None) }))
    }

    /// Digests of a cell's image files and of the features that its columns are computed from.
    pub(crate) fn digests(&self, cell: &str) -> Result<(String, String)> {
        let cell = self.find(cell).with_context(|| format!("{}: cell {cell} is missing", self.shown))?;
        let (mut images, mut features) = (blake3::Hasher::new(), blake3::Hasher::new());
        for line in &cell.manifest {
            images.update(line.blake3.as_bytes());
        }
        for columns in &self.resolved.metrics.protocol.compare {
            for metric in &columns.metrics {
                if let Some(file) = self.generated_file(cell, columns, *metric)? {
                    self.features(&file)?.data.iter().for_each(|value| {
                        features.update(&value.to_le_bytes());
                    });
                }
            }
        }
        Ok((images.finalize().to_string(), features.finalize().to_string()))
    }
}

impl RunCell {
    /// The images that the cell's scores are of.
    pub(crate) fn scored(&self) -> &[ManifestLine] {
        &self.manifest[..self.outline.n_scored]
    }
}

impl Sides {
    /// Whether everything that a metric looks at is the same to the last bit.
    pub(crate) fn is_same(&self, other: &Sides) -> bool {
        let same = |a: &FeatureSet, b: &FeatureSet| a.dim == b.dim && a.groups == b.groups && bits(&a.data).eq(bits(&b.data));
        let others = match (&self.other, &other.other) {
            (Other::Features(a), Other::Features(b)) => same(a, b),
            // Of one digest, or the runs would not be compared.
            (Other::Statistics(_), Other::Statistics(_)) | (Other::None, Other::None) => true,
            _ => false,
        };
        others && same(&self.generated, &other.generated)
    }

    /// The sides of the images `indices`; the k-th becomes group k.
    pub(crate) fn select(&self, indices: impl Iterator<Item = usize> + Clone, columns: &Columns) -> Sides {
        let other = match (&self.other, columns.against) {
            (Other::Features(other), Against::Base) => Other::Features(select(other, indices.clone())),
            (Other::Features(other), Against::Reference | Against::Prompts) => Other::Features(other.clone()),
            (Other::Statistics(other), _) => Other::Statistics(other.clone()),
            (Other::None, _) => Other::None,
        };
        Sides { generated: select(&self.generated, indices), other }
    }
}

fn keys(manifest: &[ManifestLine]) -> Vec<&str> {
    manifest.iter().map(|line| line.key.as_str()).collect()
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// The rows of the groups `indices`, in their order; the k-th becomes group k.
fn select(set: &FeatureSet, indices: impl Iterator<Item = usize>) -> FeatureSet {
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, group) in set.groups.iter().enumerate() {
        rows.entry(*group).or_default().push(row);
    }
    let mut selected =
        FeatureSet { names: Vec::new(), groups: Vec::new(), data: Vec::new(), dim: set.dim, provenance: set.provenance.clone() };
    for (k, index) in indices.enumerate() {
        for row in rows.get(&(index as u32)).into_iter().flatten() {
            selected.names.push(set.names[*row].clone());
            selected.groups.push(k as u32);
            selected.data.extend(&set.data[row * set.dim..(row + 1) * set.dim]);
        }
    }
    selected
}
