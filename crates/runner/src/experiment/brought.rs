//! Images that another program made: where they are, whether they fit, and what they cost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::{Image, list_images};

use crate::experiment::pattern::{PLACES, names_each, root};
use crate::experiment::resolved::{Brought, Model, Scale, base_name, cell_name};
use crate::experiment::spec;
use crate::experiment::yaml::did_you_mean;
use crate::host::digest;

/// Kept beside the images by whoever made them: a line `file,seconds` for each.
const TIMINGS: &str = "timings.csv";

/// One image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// As the pattern says it, from the pattern's own folder on.
    pub(crate) name: String,
    /// BLAKE3 of its bytes.
    pub(crate) digest: String,
    pub(crate) seconds: Option<f64>,
}

/// The images of one cell, as they are named.
pub(crate) struct Place<'a> {
    pub(crate) model: &'a Model,
    pub(crate) scale: &'a Scale,
    /// One for each image.
    pub(crate) seeds: &'a [u64],
}

impl Place<'_> {
    /// The pattern with everything filled in, for image `index` or for a folder.
    fn fill(&self, pattern: &str, index: Option<usize>) -> Result<String> {
        let (width, height) = self.model.size(self.scale)?;
        let (mut filled, mut rest) = (String::new(), pattern);
        while let Some((before, after)) = rest.split_once('{') {
            let (place, after) = after.split_once('}').with_context(|| format!("{pattern}: expected a }} after {{"))?;
            let (name, format) = place.split_once(':').unwrap_or((place, ""));
            let number = |value: u64| -> Result<String> {
                let digits: Option<usize> = if format.is_empty() { Some(0) } else { format.parse().ok() };
                let digits = digits.filter(|digits| *digits <= 20);
                let digits =
                    digits.with_context(|| format!("{pattern}: expected a number of digits, as in {{{name}:06}}, found {{{place}}}"))?;
                Ok(format!("{value:0digits$}"))
            };
            filled += before;
            filled += &match (name, index) {
                ("model", _) => self.model.name.clone(),
                ("scale", _) => self.scale.factor.to_string(),
                ("width", _) => number(width.into())?,
                ("height", _) => number(height.into())?,
                ("index", Some(index)) => number(index as u64)?,
                ("seed", Some(index)) => number(self.seeds[index])?,
                _ => bail!("{pattern}: unknown {{{place}}}, expected {{{}}}{}", PLACES.join("}, {"), did_you_mean(name, PLACES)),
            };
            rest = after;
        }
        Ok(filled + rest)
    }

    /// What the file of image `index` is or will be called, from the pattern's own folder on.
    pub(crate) fn file_name(&self, pattern: &str, index: usize) -> Result<String> {
        if names_each(pattern) {
            let file = self.fill(pattern, Some(index))?;
            return Ok(file[root(pattern).len()..].to_owned());
        }
        let folder = self.fill(pattern, None)?;
        let inside = folder[root(pattern).len()..].trim_matches('/');
        Ok(if inside.is_empty() { format!("{index:06}.png") } else { format!("{inside}/{index:06}.png") })
    }

    /// The files of all images, which must be there and of the right size; none if not one of them is there.
    pub(crate) fn find(&self, pattern: &str, folder: &Path) -> Result<Option<Vec<File>>> {
        let (paths, names) = match names_each(pattern) {
            true => {
                let names = (0..self.seeds.len()).map(|index| self.fill(pattern, Some(index))).collect::<Result<Vec<_>>>()?;
                let mut seen = BTreeSet::new();
                if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
                    bail!("{}: several images would be this file; expected {{index}} in {pattern}", folder.join(twice).display());
                }
                (names.iter().map(|name| folder.join(name)).collect::<Vec<_>>(), names)
            }
            false => {
                let written = self.fill(pattern, None)?;
                let there = folder.join(&written);
                if !there.exists() {
                    return Ok(None);
                }
                let paths = list_images(&there)?;
                self.check_folder(&there, &paths)?;
                let name = |path: &PathBuf| Path::new(&written).join(path.strip_prefix(&there).unwrap_or(path)).display().to_string();
                let names = paths.iter().map(name).collect();
                (paths, names)
            }
        };
        if !paths.iter().any(|path| path.exists()) {
            return Ok(None);
        }
        let seconds = timings(&folder.join(root(pattern)))?;
        let (width, height) = self.model.size(self.scale)?;
        let mut files = Vec::with_capacity(paths.len());
        for (index, (path, name)) in paths.into_iter().zip(names).enumerate() {
            ensure!(path.is_file(), "{}: image {index} of {} is missing", path.display(), self.seeds.len());
            let found = Image::size(&path)?;
            ensure!(
                found == (width as usize, height as usize),
                "{}: expected an image of {width}x{height}, found {}x{}",
                path.display(),
                found.0,
                found.1
            );
            let digest = digest::of_file(&path)?;
            let name = name[root(pattern).len().min(name.len())..].trim_start_matches('/').to_owned();
            files.push(File { seconds: seconds.get(&name).copied(), path, name, digest });
        }
        Ok(Some(files))
    }

    /// Whether a folder's sorted files can be taken for images 0, 1, 2, ….
    fn check_folder(&self, folder: &Path, files: &[PathBuf]) -> Result<()> {
        let (n, shown) = (self.seeds.len(), folder.display());
        let stems: Vec<String> = files.iter().map(|file| file.with_extension("").to_string_lossy().into_owned()).collect();
        if let Some(i) = (1..stems.len()).find(|i| stems[*i] == stems[*i - 1]) {
            bail!("{} and {} are two files of one name; expected one for each image", files[i - 1].display(), files[i].display());
        }
        let number = |file: &PathBuf| file.file_stem()?.to_str()?.parse::<u64>().ok();
        let numbers: Option<Vec<u64>> = files.iter().map(number).collect();
        if let Some(numbers) = numbers.filter(|_| files.iter().all(|file| file.parent() == Some(folder))) {
            if let Some(i) = (1..numbers.len()).find(|i| numbers[*i] < numbers[*i - 1]) {
                let (first, second) = (files[i - 1].display(), files[i].display());
                bail!("sorted by name {first} comes before {second}; expected numbers with leading zeros, or {shown}/{{index}}.png");
            }
            if let Some(i) = (1..numbers.len()).find(|i| numbers[*i] > numbers[*i - 1] + 1) {
                bail!("{}: no file of number {} in front of it; expected {n} images without a gap", files[i].display(), numbers[i] - 1);
            }
        }
        if files.len() > n {
            bail!("{}: image {n} of {n}: expected {n} images in {shown}, found {}", files[n].display(), files.len());
        }
        let last = files.last().map_or_else(String::new, |file| format!("; the last is {}", file.display()));
        ensure!(files.len() == n, "{shown}: expected {n} images, found {}{last}", files.len());
        Ok(())
    }
}

/// Seconds by file name; nothing where nobody wrote them down. A later line is of a later making.
fn timings(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let path = folder.join(TIMINGS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut found = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let pair = line.rsplit_once(',').map(|(file, seconds)| (file.trim().trim_matches('"'), seconds.trim()));
        match pair {
            Some(("file", "seconds")) if i == 0 => continue,
            Some((file, seconds)) => match seconds.parse::<f64>() {
                Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
                    found.insert(file.to_owned(), seconds);
                    continue;
                }
                _ => (),
            },
            None => (),
        }
        bail!("{}: line {}: expected `file,seconds`, found `{line}`", path.display(), i + 1);
    }
    Ok(found)
}

/// All images of a method by cell, and how it is described; `folder` is where patterns start. A scale has the first `count` of the seeds,
/// base-resolution images have all.
pub(crate) fn find(
    entry: &spec::Entry,
    folder: &Path,
    models: &[Model],
    scales: &[Scale],
    all_seeds: &[u64],
    count: &dyn Fn(&Scale) -> usize,
    method: &str,
) -> Result<(Brought, BTreeMap<String, Vec<File>>)> {
    let images = entry.images.clone().context("expected `images`")?;
    let (mut cells, mut missing) = (BTreeMap::new(), BTreeSet::new());
    for model in models {
        for scale in scales {
            let (cell, seeds) = (cell_name(&model.name, scale, method), &all_seeds[..count(scale)]);
            match (Place { model, scale, seeds }).find(&images, folder).with_context(|| format!("cell {cell}"))? {
                Some(files) => drop(cells.insert(cell, files)),
                None if entry.partial => drop(missing.insert(cell)),
                None => {
                    let first = folder.join(root(&images)).join(Place { model, scale, seeds }.file_name(&images, 0)?);
                    bail!(
                        "cell {cell}: expected {} images, found none; {} is the first (partial: true leaves such a cell empty)",
                        seeds.len(),
                        first.display()
                    );
                }
            }
        }
        if let Some(pattern) = &entry.base {
            let cell = cell_name(&model.name, &Scale::BASE, &base_name(method));
            let seeds = all_seeds;
            let place = Place { model, scale: &Scale::BASE, seeds };
            let files = place.find(pattern, folder).with_context(|| format!("cell {cell}"))?;
            let files = files.with_context(|| format!("cell {cell}: base: expected {} images under {pattern}, found none", seeds.len()))?;
            cells.insert(cell, files);
        }
    }
    check_shared(&cells)?;
    let mut hasher = blake3::Hasher::new();
    for (cell, files) in &cells {
        hasher.update(cell.as_bytes());
        for file in files {
            hasher.update(file.digest.as_bytes());
        }
    }
    let digest = hasher.finalize().to_string();
    Ok((Brought { images, base: entry.base.clone(), source: entry.source.clone(), missing, digest }, cells))
}

/// Refuses a pattern by which two cells have the same files.
fn check_shared(cells: &BTreeMap<String, Vec<File>>) -> Result<()> {
    let mut owners: BTreeMap<&Path, &str> = BTreeMap::new();
    for (cell, files) in cells {
        for file in files {
            if let Some(other) = owners.insert(&file.path, cell) {
                bail!(
                    "{}: is of cell {other} and of cell {cell}; expected {{model}}, {{scale}} or {{width}} in the pattern",
                    file.path.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use scalebench_generation::Dtype;

    use super::*;

    fn model(name: &str) -> Model {
        let (family, path, digest) = ("sd15".to_owned(), PathBuf::new(), String::new());
        Model {
            name: name.to_owned(),
            family,
            path,
            motion_adapter: None,
            variant: None,
            dtype: Dtype::F32,
            digest,
            width: 8,
            height: 8,
            set: BTreeMap::new(),
        }
    }

    /// A grey image; `value` tells it from others.
    fn write(path: &Path, (width, height): (u32, u32), value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&vec![value; (width * height) as usize]).unwrap();
    }

    fn entry(text: &str) -> spec::Entry {
        crate::experiment::yaml::from_value(serde_yaml::from_str(text).unwrap()).unwrap()
    }

    /// Of two models at 4 and 16 times the pixels, three images each.
    fn check(dir: &Path, text: &str) -> Result<(Brought, BTreeMap<String, Vec<File>>), String> {
        let entry = entry(text);
        entry.check().map_err(|error| format!("{error:#}"))?;
        let scales = [Scale::from_factor(4.0), Scale::from_factor(16.0)];
        find(&entry, dir, &[model("a"), model("b")], &scales, &[7, 8, 9], &|_| 3, "mine").map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn patterns_and_folders_name_the_same_images() {
        let dir = tempfile::tempdir().unwrap();
        for (m, model) in ["a", "b"].into_iter().enumerate() {
            for (factor, side) in [(4, 16), (16, 32)] {
                for i in 0..3 {
                    let value = (m * 100 + factor + i) as u8;
                    write(&dir.path().join(format!("out/{model}/{factor}x/{i:03}.png")), (side, side), value);
                    write(&dir.path().join(format!("flat/{model}-{side}x{side}-{}.png", 7 + i)), (side, side), value);
                }
            }
        }
        let timings = "file,seconds\na/4x/000.png,1.5\n\"a/4x/001.png\",2\na/4x/000.png,0.5\n";
        std::fs::write(dir.path().join("out/timings.csv"), timings).unwrap();
        let (brought, cells) = check(dir.path(), "{images: 'out/{model}/{scale}x/{index:03}.png', name: mine}").unwrap();
        assert_eq!(cells.keys().collect::<Vec<_>>(), ["a/16x-mine", "a/4x-mine", "b/16x-mine", "b/4x-mine"]);
        let files = &cells["a/4x-mine"];
        assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a/4x/000.png", "a/4x/001.png", "a/4x/002.png"]);
        assert_eq!(files.iter().map(|file| file.seconds).collect::<Vec<_>>(), [Some(0.5), Some(2.0), None]);
        for other in ["{images: 'out/{model}/{scale}x', name: mine}", "{images: 'flat/{model}-{width}x{height}-{seed}.png', name: mine}"] {
            let (same, cells) = check(dir.path(), other).unwrap();
            assert_eq!(same.digest, brought.digest, "{other}");
            assert_eq!(cells["b/16x-mine"][2].digest, digest::of_file(&dir.path().join("out/b/16x/002.png")).unwrap());
        }
        write(&dir.path().join("out/b/16x/002.png"), (32, 32), 0);
        assert_ne!(check(dir.path(), "{images: 'out/{model}/{scale}x', name: mine}").unwrap().0.digest, brought.digest);

        let place = Place { model: &model("a"), scale: &Scale::from_factor(4.0), seeds: &[7, 8, 9] };
        assert_eq!(place.file_name("out/{model}/{scale}x/{index:03}.png", 2).unwrap(), "a/4x/002.png");
        assert_eq!(place.file_name("out/{width}/", 1).unwrap(), "16/000001.png");
        assert_eq!(place.file_name("out", 1).unwrap(), "000001.png");
        assert_eq!(place.file_name("{seed}.webp", 1).unwrap(), "8.webp");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (folder, names) in [
            ("good", &["000", "001", "002"][..]),
            ("few", &["000", "001"]),
            ("many", &["000", "001", "002", "003"]),
            ("gap", &["000", "002", "003"]),
            ("bare", &["8", "9", "10"]),
            ("late", &["000", "001", "002"]),
        ] {
            for name in names {
                write(&at(&format!("{folder}/16/{name}.png")), (16, 16), 1);
                write(&at(&format!("{folder}/32/{name}.png")), (32, 32), 1);
            }
        }
        write(&at("good/16/002.webp"), (16, 16), 1);
        std::fs::rename(at("good/16/002.webp"), at("twice.webp")).unwrap();
        let twice = |there: bool| match there {
            true => std::fs::copy(at("twice.webp"), at("good/16/002.webp")).map(drop),
            false => std::fs::remove_file(at("good/16/002.webp")),
        };
        write(&at("late/16/001.png"), (32, 16), 1);
        std::fs::write(at("few/timings.csv"), "file,seconds\n").unwrap();
        for (pattern, fragments) in [
            ("few/{width}/{index:03}.png", &["cell a/4x-mine", "few/16/002.png", "image 2 of 3 is missing"][..]),
            ("few/{width}", &["few/16", "expected 3 images, found 2", "the last is", "001.png"]),
            ("many/{width}", &["many/16/003.png", "expected 3 images", "found 4"]),
            ("gap/{width}", &["gap/16/002.png", "no file of number 1"]),
            ("bare/{width}", &["10.png comes before", "8.png", "leading zeros", "{index}.png"]),
            ("late/{width}/{index:03}.png", &["late/16/001.png", "expected an image of 16x16, found 32x16"]),
            ("good/16/{index:03}.png", &["cell a/16x-mine", "expected an image of 32x32, found 16x16"]),
            ("good/{width}/{index:03}.png", &["is of cell a/", "and of cell b/", "{model}"]),
            (
                "none/{width}/{index}.png",
                &["cell a/4x-mine", "expected 3 images, found none", "none/16/0.png is the first", "partial: true"],
            ),
            ("good/{size}/{index}.png", &["unknown {size}", "{index}, {seed}"]),
            ("good/{width}/{indx}", &["unknown {indx}", "did you mean `index`?"]),
            ("good/{width}/{index:x}.png", &["expected a number of digits", "{index:x}"]),
            ("good/{width/{index}.png", &["good/{width/{index}.png"]),
            ("good/{width}/all.png", &["all images would be this one file", "{index} or {seed}"]),
            ("good/{width}/{index}", &["expected the name of an image"]),
        ] {
            let message = check(dir.path(), &format!("{{images: '{pattern}', name: mine}}")).unwrap_err();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{pattern}: {message}");
        }
        twice(true).unwrap();
        let message = check(dir.path(), "{images: 'good/{width}', name: mine}").unwrap_err();
        assert!(message.contains("002.png and") && message.contains("002.webp are two files of one name"), "{message}");
        twice(false).unwrap();
        let (pattern, file) = ("{images: 'few/{width}/{index:03}.png', name: mine}", at("few/timings.csv"));
        for text in ["file,seconds\n16/000.png,fast\n", "16/000.png\n", "16/000.png,-1\n"] {
            std::fs::write(&file, text).unwrap();
            let message = check(dir.path(), pattern).unwrap_err();
            assert!(message.contains("timings.csv: line") && message.contains("expected `file,seconds`"), "{message}");
        }
    }

    #[test]
    fn what_an_entry_must_say() {
        for (text, fragments) in [
            ("{images: 'a/{index}.png'}", &["expected a `name`"][..]),
            ("{images: 'a/{index}.png', name: x, method: direct-inf}", &["either `method` or `images`"]),
            ("{method: direct-inf, title: x}", &["title: expected it beside `images` only"]),
            ("{method: direct-inf, partial: true}", &["partial: expected it beside `images` only"]),
            ("{images: 'a/{index}.png', name: x, set: {sampler.steps: 3}}", &["`set` and `label`"]),
            ("{label: x}", &["expected `method`"]),
        ] {
            let message = format!("{:#}", entry(text).check().unwrap_err());
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{text}: {message}");
        }
    }

    #[test]
    fn a_missing_cell_is_left_empty_on_request_and_a_base_may_be_brought() {
        let dir = tempfile::tempdir().unwrap();
        for model in ["a", "b"] {
            for i in 0..3 {
                write(&dir.path().join(format!("{model}/16/{i}.png")), (16, 16), i);
                write(&dir.path().join(format!("{model}/8/{i}.png")), (8, 8), i);
            }
        }
        let (brought, cells) =
            check(dir.path(), "{images: '{model}/{width}/{index}.png', name: mine, partial: true, base: '{model}/8'}").unwrap();
        assert_eq!(brought.missing.iter().collect::<Vec<_>>(), ["a/16x-mine", "b/16x-mine"]);
        assert_eq!(cells.keys().collect::<Vec<_>>(), ["a/1x-mine-base", "a/4x-mine", "b/1x-mine-base", "b/4x-mine"]);
        // Some images of a cell are not a missing cell.
        std::fs::remove_file(dir.path().join("b/16/1.png")).unwrap();
        let message = check(dir.path(), "{images: '{model}/{width}/{index}.png', name: mine, partial: true}").unwrap_err();
        assert!(message.contains("b/16/1.png: image 1 of 3 is missing"), "{message}");
        std::fs::remove_dir_all(dir.path().join("a/8")).unwrap();
        let message =
            check(dir.path(), "{images: '{model}/{width}/{index}.png', name: mine, partial: true, base: '{model}/8'}").unwrap_err();
        assert!(message.contains("cell a/1x-mine-base: base: expected 3 images"), "{message}");
    }
}
