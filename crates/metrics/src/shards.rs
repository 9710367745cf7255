//! Image sets in tar shards, as webdataset and img2dataset write them, without unpacking them.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::image::is_image;
use crate::{Error, Image, ImageSet, Result};

/// A tar archive ends with two blocks of zeros; one is enough to know that nothing was cut off.
const BLOCK: usize = 512;

/// Most shards that a pattern may stand for: more is a mistyped number.
const MOST_SHARDS: usize = 1_000_000;

/// Files of one kind in one or several tar archives.
///
/// Their order is the shards' (of a pattern as it is written, of a folder by name), and within a shard that of the names' bytes:
/// the order of the same files unpacked, whatever the order in which they were packed.
///
/// Opening reads the headers alone, and what is kept is a name and a place in the file for each entry; contents are read when
/// they are asked for, by any number of threads. No file stays open.
///
/// ```
/// use scalebench_metrics::{Image, ImageSet, Shards};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("00000.tar");
/// let mut tar = tar::Builder::new(std::fs::File::create(&path)?);
/// tar.append_path_with_name("../../datasets/pocket/grid.png", "7.png")?;
/// tar.append_path_with_name("../../datasets/pocket/README.md", "7.txt")?;
/// tar.finish()?;
/// let images = Shards::images(&path)?;
/// assert_eq!((images.len(), images.name(0), images.files()), (1, "00000.tar/7.png", &[path.clone()][..]));
/// assert_eq!(images.image(0)?, Image::open("../../datasets/pocket/grid.png".as_ref())?);
/// // What is said of them.
/// let texts = Shards::with_ending(&path, "txt")?;
/// assert_eq!(texts.read(0)?, std::fs::read("../../datasets/pocket/README.md")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Shards {
    /// What is left out of the shards' names.
    root: PathBuf,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
}

/// One file of a shard.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    shard: u32,
    /// Name of the shard and name inside it: `00000.tar/000000017.jpg`.
    name: String,
    at: u64,
    size: u64,
}

impl Shards {
    /// PNG, JPEG and WebP files, told by the endings of their names: of one archive `FILE.tar`, of a folder with `.tar` files, or
    /// of a pattern such as `DIR/{00000..00010}.tar` (ranges of numbers, as wide as they are written, and lists `{a,b}`).
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NoImages`], [`Error::Pattern`], and [`Error::Archive`] for what is no tar archive, is cut off or
    /// packed (`.tar.gz`), or has one name twice.
    ///
    /// Example: [`Shards`].
    pub fn images(path: &Path) -> Result<Self> {
        let shards = Self::open(path, |name| is_image(Path::new(name)))?;
        if shards.entries.is_empty() {
            return Err(Error::NoImages { path: path.to_owned() });
        }
        Ok(shards)
    }

    /// The files whose name ends in `.ENDING`, which may be none: captions, as `txt` or `json`.
    ///
    /// # Errors
    ///
    /// As [`images`](Self::images).
    ///
    /// Example: [`Shards`].
    pub fn with_ending(path: &Path, ending: &str) -> Result<Self> {
        Self::open(path, |name| Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(ending)))
    }

    fn open(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let files = shard_files(path)?;
        let root = root(path);
        let mut entries = Vec::new();
        for (shard, file) in files.iter().enumerate() {
            let shown = file.strip_prefix(&root).unwrap_or(file).to_string_lossy();
            let first = entries.len();
            index(file, &wanted, |name, at, size| entries.push(Entry { shard: shard as u32, name: format!("{shown}/{name}"), at, size }))?;
            entries[first..].sort_unstable();
            if let Some(pair) = entries[first..].windows(2).find(|pair| pair[0].name == pair[1].name) {
                let message = format!("{} is in it twice", pair[0].name);
                return Err(Error::Archive { path: file.clone(), message });
            }
        }
        entries.shrink_to_fit();
        Ok(Self { root, files, entries })
    }

    /// The archives, in order.
    /// Example: [`Shards`].
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Content of the file at `place`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// # Panics
    ///
    /// If there is no such place.
    ///
    /// Example: [`Shards`].
    pub fn read(&self, place: usize) -> Result<Vec<u8>> {
        let Entry { shard, at, size, .. } = &self.entries[place];
        let path = &self.files[*shard as usize];
        let read = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(*at))?;
            // The size was compared with the file's when it was opened.
            let mut bytes = vec![0; *size as usize];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source| Error::Io { action: "read", path: path.clone(), source })
    }
}

impl ImageSet for Shards {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn name(&self, place: usize) -> &str {
        &self.entries[place].name
    }

    fn image(&self, place: usize) -> Result<Image> {
        Image::decode(Cursor::new(self.read(place)?), &self.root.join(&self.entries[place].name))
    }
}

/// Tells `found` the name, position and size of every wanted file of an archive.
fn index(path: &Path, wanted: impl Fn(&str) -> bool, mut found: impl FnMut(&str, u64, u64)) -> Result<()> {
    let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let bad = |message: String| Error::Archive { path: path.to_owned(), message };
    let mut file = BufReader::new(File::open(path).map_err(read)?);
    let length = file.get_ref().metadata().map_err(read)?.len();
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(read)?;
    file.rewind().map_err(read)?;
    if let [0x1f, 0x8b, ..] | [b'B', b'Z', b'h', _] | [0xfd, b'7', b'z', _] | [0x28, 0xb5, 0x2f, 0xfd] = magic[..] {
        return Err(bad("it is compressed; expected a plain tar, in which images can be found without reading the others".into()));
    }
    let mut end = 0;
    let mut archive = tar::Archive::new(&mut file);
    for entry in archive.entries_with_seek().map_err(read)? {
        let entry = entry.map_err(|error| bad(error.to_string()))?;
        let (at, size, kind) = (entry.raw_file_position(), entry.size(), entry.header().entry_type());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./");
        end = at.saturating_add(size.next_multiple_of(BLOCK as u64));
        if at.saturating_add(size) > length {
            return Err(bad(format!("it ends inside {name}: cut off")));
        }
        // What macOS keeps beside a file is not an image, whatever its name.
        let is_companion = Path::new(name).file_name().is_some_and(|file| file.to_string_lossy().starts_with("._"));
        if kind == EntryType::Directory || is_companion || !wanted(name) {
            continue;
        }
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            return Err(bad(format!("{name} is a link or a sparse file; expected plain files")));
        }
        found(name, at, size);
    }
    let mut marker = [1; BLOCK];
    file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut marker)).map_err(|_| bad("it has no end: cut off".into()))?;
    if marker != [0; BLOCK] { Err(bad("it is no tar archive".into())) } else { Ok(()) }
}

/// Whether a path stands for tar shards: by its name, or as a folder of them.
pub(crate) fn is_shards(path: &Path) -> bool {
    let is_tar = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"));
    match path.is_dir() {
        true => std::fs::read_dir(path).is_ok_and(|entries| entries.flatten().any(|entry| is_tar(&entry.path()))),
        false => is_tar(path) || path.to_string_lossy().contains(".tar."),
    }
}

/// The folder in front of a path's first pattern.
fn root(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_owned();
    }
    let text = path.to_string_lossy();
    let fixed = if path.exists() { &text } else { text.split('{').next().unwrap_or_default() };
    PathBuf::from(fixed.rfind(std::path::is_separator).map_or("", |at| &fixed[..=at]))
}

/// The archives that a path stands for.
fn shard_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let list = |source| Error::Io { action: "list", path: path.to_owned(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(list)? {
            let file = entry.map_err(list)?.path();
            if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) {
                files.push(file);
            }
        }
        files.sort();
        return Ok(files);
    }
    // A file may have braces in its name.
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let text = path.to_string_lossy();
    Ok(expand(&text)
        .map_err(|message| Error::Pattern { pattern: text.clone().into_owned(), message })?
        .into_iter()
        .map(PathBuf::from)
        .collect())
}

/// What a pattern stands for, in order: `{00000..00010}` and `{a,b}`, any number of them, the last one running fastest.
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let (inside, after) = rest.split_once('}').ok_or("expected a `}` after `{`")?;
    let values: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number =
                |text: &str| text.parse::<u64>().map_err(|_| format!("expected numbers in {{{inside}}}, such as {{00000..00010}}"));
            let (low, high) = (number(first)?, number(last)?);
            if low > high || high - low >= MOST_SHARDS as u64 {
                return Err(format!("expected a first and a last number in {{{inside}}}"));
            }
            (low..=high).map(|n| format!("{n:0width$}", width = first.len())).collect()
        }
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let tails = expand(after)?;
    if values.len().saturating_mul(tails.len()) > MOST_SHARDS {
        return Err(format!("it stands for more than {MOST_SHARDS} files"));
    }
    Ok(values.iter().flat_map(|value| tails.iter().map(move |tail| format!("{before}{value}{tail}"))).collect())
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;
    use crate::test_data::{formula_image, png};
    use crate::{Error, Sample};

    /// Writes entries in the order given, as other tools do.
    fn tar(path: &Path, entries: &[(&str, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.finish().unwrap();
    }

    #[test]
    fn the_order_is_that_of_unpacked_files() {
        let dir = tempfile::tempdir().unwrap();
        let images: Vec<Image> = (0..7).map(|seed| formula_image(seed, 40 + seed as usize, 30)).collect();
        let files: Vec<Vec<u8>> = images.iter().map(png).collect();
        // Longer than the 100 bytes of a header's field.
        let long = format!("{}/c.png", "deep".repeat(40));
        let at = |name: &str| dir.path().join(name);
        tar(&at("00009.tar"), &[("b.png", &files[1]), ("b.txt", b"x"), ("a.PNG", &files[0]), ("./c.json", b"{}"), ("._a.png", b"x")]);
        tar(&at("00010.tar"), &[(&long, &files[3]), ("b.png", &files[2])]);
        tar(&at("00011.tar"), &[("10.png", &files[5]), ("1.png", &files[4]), ("2.png", &files[6])]);
        let names = ["00009.tar/a.PNG", "00009.tar/b.png", "00010.tar/b.png", "", "00011.tar/1.png", "00011.tar/10.png", "00011.tar/2.png"];
        for path in [at("{00009..00011}.tar"), dir.path().to_owned(), at("{00009,00010,00011}.tar"), at("000{09..11}.tar")] {
            let found = Shards::images(&path).unwrap();
            assert_eq!(found.len(), 7);
            for (place, name) in names.iter().enumerate().filter(|(place, _)| *place != 3) {
                assert_eq!(found.name(place), *name);
            }
            assert!(found.name(3).ends_with("/c.png") && found.name(3).len() > 160, "{}", found.name(3));
            (0..70).into_par_iter().for_each(|k| assert_eq!(found.image(k % 7).unwrap(), images[k % 7]));
            let samples = Sample::all(&path).unwrap();
            assert_eq!(samples.iter().map(|sample| sample.group).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!(samples[5].name, "00011.tar/10.png");
        }
        let backwards = Shards::images(&at("{00011,00009}.tar")).unwrap();
        assert_eq!((backwards.name(0), backwards.name(3)), ("00011.tar/1.png", "00009.tar/a.PNG"));
        let texts = Shards::with_ending(dir.path(), "txt").unwrap();
        assert_eq!((texts.len(), texts.name(0), texts.read(0).unwrap()), (1, "00009.tar/b.txt", b"x".to_vec()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = png(&formula_image(1, 50, 60));
        let check = |name: &str, fragments: &[&str]| {
            let message = Shards::images(&at(name)).unwrap_err().to_string();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{name}: {message}");
        };
        tar(&at("good.tar"), &[("a.png", &file), ("b.png", &file)]);
        let bytes = std::fs::read(at("good.tar")).unwrap();
        for (name, length) in
            [("inside.tar", 700), ("header.tar", bytes.len() / 2 - 300), ("end.tar", bytes.len() - 1024), ("nothing.tar", 0)]
        {
            std::fs::write(at(name), &bytes[..length]).unwrap();
            check(name, &["bad archive", name]);
        }
        check("inside.tar", &["it ends inside a.png: cut off"]);
        check("end.tar", &["it has no end: cut off"]);
        std::fs::write(at("text.tar"), "no archive at all, but long enough to be taken for a header. ".repeat(40)).unwrap();
        check("text.tar", &["bad archive", "text.tar"]);
        std::fs::write(at("packed.tar.gz"), [0x1f, 0x8b, 8, 0, 0]).unwrap();
        check("packed.tar.gz", &["packed.tar.gz", "compressed", "plain tar"]);
        tar(&at("twice.tar"), &[("a.png", &file), ("./a.png", &file)]);
        check("twice.tar", &["twice.tar/a.png is in it twice"]);
        tar(&at("texts.tar"), &[("a.txt", b"x")]);
        assert!(matches!(Shards::images(&at("texts.tar")), Err(Error::NoImages { .. })));
        check("{0..x}.tar", &["expected numbers in {0..x}"]);
        check("{5..3}.tar", &["expected a first and a last number"]);
        check("{5", &["expected a `}`"]);
        check("{0..9999999}.tar", &["expected a first and a last number"]);
        check("{good,missing}.tar", &["cannot read", "missing.tar"]);
        tar(&at("bad.tar"), &[("a.png", &file), ("b.png", b"nothing")]);
        let found = Shards::images(&at("bad.tar")).unwrap();
        let error = found.image(1).unwrap_err();
        assert!(matches!(error, Error::Decode { .. }) && error.to_string().contains("bad.tar/b.png"), "{error}");
    }

    #[test]
    fn links_are_not_left_out_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("links.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "b.png", "a.png").unwrap();
        builder.finish().unwrap();
        let message = Shards::images(&path).unwrap_err().to_string();
        assert!(message.contains("links.tar") && message.contains("b.png is a link"), "{message}");
    }
}
