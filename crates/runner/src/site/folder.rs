//! The folder of a site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::source::Source;
use super::spec::{self, Spec};
use super::{boards, compare, costs, frame, index, methods, protocols, runs, samples};
use crate::run::shard::Shard;
use crate::run::store::Store;

/// Lists what a site's folder holds, so that the next one in its place leaves nothing of it behind.
const CONTENTS: &str = "site.json";

#[derive(Serialize, Deserialize)]
struct Contents {
    /// The program that made it.
    tool: String,
    files: Vec<PathBuf>,
}

/// What was written.
pub(crate) struct Built {
    pub(crate) pages: usize,
    pub(crate) samples: usize,
    pub(crate) bytes: usize,
}

/// Makes a site of run directories, committed reports, and at most one site file.
pub(crate) fn build(out: &Path, paths: &[PathBuf]) -> Result<Built> {
    let spec = Spec::of(paths)?;
    let store = Store::new(out, Shard::WHOLE);
    let before = contents(&store, out)?;
    let mut sources: Vec<Source> = spec.runs.iter().map(|folder| Source::read(folder)).collect::<Result<_>>()?;
    let goldens = spec.goldens.as_deref().map_or_else(|| Ok(Vec::new()), spec::goldens)?;
    let images = samples::extract(&mut sources)?;
    let pages = pages(&spec, &sources, &goldens)?;
    let built = Built {
        pages: pages.len(),
        samples: images.len(),
        bytes: images.values().map(Vec::len).sum::<usize>() + pages.values().map(String::len).sum::<usize>(),
    };
    let files = images.into_iter().chain(pages.into_iter().map(|(name, page)| (name, page.into_bytes())));
    let mut names = Vec::new();
    for (name, bytes) in files {
        store.write(&name, &bytes)?;
        names.push(PathBuf::from(name));
    }
    for old in before.files.iter().filter(|old| !names.contains(old)) {
        let path = out.join(old);
        std::fs::remove_file(&path).or_else(|error| if path.exists() { Err(error) } else { Ok(()) })?;
    }
    let contents = Contents { tool: format!("scalebench {}", env!("SCALEBENCH_VERSION")), files: names };
    store.write(CONTENTS, &serde_json::to_vec_pretty(&contents)?)?;
    Ok(built)
}

/// What a site that is already there holds; a folder with other things in it is left alone.
fn contents(store: &Store, out: &Path) -> Result<Contents> {
    let place = || store.path(CONTENTS).display().to_string();
    if let Some(bytes) = store.read(CONTENTS)? {
        let found: Contents = serde_json::from_slice(&bytes).with_context(place)?;
        let is_inside = |path: &PathBuf| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(found.files.iter().all(is_inside), "{}: expected files inside of the folder", place());
        return Ok(found);
    }
    let is_empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(is_empty, "{}: holds other things than a site, expected a new or empty folder", out.display());
    Ok(Contents { tool: String::new(), files: Vec::new() })
}

/// Every page by its file name.
fn pages(spec: &Spec, sources: &[Source], goldens: &[spec::Golden]) -> Result<BTreeMap<String, String>> {
    let (boards, pairs) = (boards::boards(sources), compare::pairs(sources));
    let (methods, protocols) = (methods::all(sources)?, protocols::all(sources)?);
    let mut pages = BTreeMap::new();
    let mut add = |name: String, page: String| match pages.insert(name.clone(), page) {
        None => Ok(()),
        Some(_) => bail!("two pages would be {name}, expected runs, methods and protocols with names that differ in letters and digits"),
    };
    add("index.html".to_owned(), index::page(spec.title.as_deref(), sources, &boards))?;
    add("costs.html".to_owned(), costs::page(sources, &boards)?)?;
    add("compare.html".to_owned(), pairs.page()?)?;
    add("methods.html".to_owned(), methods::list(&methods, sources))?;
    add("protocols.html".to_owned(), protocols::list(&protocols, sources))?;
    add("runs.html".to_owned(), runs::list(sources))?;
    for source in sources {
        add(frame::run_page(&source.name), runs::page(source).with_context(|| source.name.clone())?)?;
    }
    for method in &methods {
        add(frame::method_page(method.name), method.page(sources, &boards, goldens, &pairs))?;
    }
    for protocol in &protocols {
        add(frame::protocol_page(&protocol.name), protocols::page(protocol, sources, &boards))?;
    }
    Ok(pages)
}
