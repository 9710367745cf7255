//! The readers.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Seek, Write};
use std::path::{Path, PathBuf};

use candle_core::Device;
use scalebench::fuzzing;
use scalebench_generation::{Dtype, MethodSpec, UNetBench};
use scalebench_metrics::npz::Npz;
use scalebench_metrics::torch_file::TorchFile;
use scalebench_metrics::{FeatureSet, Image, ImageArchive, ImageSet, Shards, StatisticsFile};

/// One reader.
///
/// Example: [`Loop`](crate::Loop).
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name on the command line.
    pub name: &'static str,
    /// Reads bytes; what is wrong with them is the outcome. It must come back, in short time and memory.
    pub run: fn(&[u8]) -> Result<(), String>,
    /// Well-formed inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parts of the format that chance would not find.
    pub words: &'static [&'static [u8]],
}

const NUMBERS: &[&[u8]] =
    &[b"0", b"-1", b"1e999", b"-0.0", b".nan", b".inf", b"18446744073709551615", b"18446744073709551616", b"1000000000000", b"1"];

const YAML: &[&[u8]] = &[
    b"0",
    b"-1",
    b".nan",
    b".inf",
    b"18446744073709551615",
    b"1000000",
    b"1.5",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b"\n  - ",
    b": ",
    b"&a ",
    b"*a",
    b"!!x ",
];

const ZIP: &[&[u8]] = &[
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"../",
    b".png",
    b".npy",
    b"data.pkl",
    b"\x08\x00",
    b"\x63\x00",
];

/// All of them.
pub const TARGETS: [Target; 14] = [
    Target {
        name: "torch",
        run: torch,
        seeds: torch_seeds,
        words: &[
            b"ctorch\n",
            b"cos\nsystem\n",
            b"FloatStorage\n",
            b"\x8a\x08",
            b"X\xff\xff\xff\xff",
            b"(",
            b"t",
            b"R",
            b"Q",
            b"}",
            b"s",
            b".",
            b"\x80\x02",
            b"PK\x03\x04",
            b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        ],
    },
    Target { name: "npz", run: npz, seeds: npz_seeds, words: ZIP },
    Target { name: "zip", run: zip, seeds: zip_seeds, words: ZIP },
    Target {
        name: "tar",
        run: tar,
        seeds: tar_seeds,
        words: &[b"ustar\0", b"77777777777", b"L", b"x", b"0000000", b"././@LongLink", b"12 path=", b"\x80\x00\x00\x00", b".png"],
    },
    Target { name: "features", run: features, seeds: features_seeds, words: NUMBERS },
    Target { name: "statistics", run: statistics, seeds: statistics_seeds, words: NUMBERS },
    Target {
        name: "image",
        run: image,
        seeds: image_seeds,
        words: &[
            b"IHDR",
            b"IDAT",
            b"IEND",
            b"PLTE",
            b"tEXt",
            b"zTXt",
            b"iCCP",
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\xff\xd8",
            b"\xff\xda",
            b"RIFF",
            b"WEBPVP8L",
        ],
    },
    Target {
        name: "png",
        run: |bytes| text(fuzzing::image(bytes)),
        seeds: png_seeds,
        words: &[b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"scalebench:key\0", b"\xff\xff\xff\xff", b"\x00\x01\x86\xa0"],
    },
    Target { name: "method", run: method, seeds: method_seeds, words: YAML },
    Target { name: "experiment", run: |bytes| text(fuzzing::experiment(bytes)), seeds: experiment_seeds, words: YAML },
    Target { name: "protocol", run: |bytes| text(fuzzing::protocol(bytes)), seeds: protocol_seeds, words: YAML },
    Target { name: "captions", run: |bytes| text(fuzzing::captions(bytes)), seeds: captions_seeds, words: NUMBERS },
    Target {
        name: "tables",
        run: |bytes| text(fuzzing::tables(bytes)),
        seeds: tables_seeds,
        words: &[b",", b"\"", b"\n", b"\r\n", b"\"\"", b"PAR1", b"\xff\xfe", b"caption"],
    },
    Target { name: "run", run: |bytes| text(fuzzing::run_files(bytes)), seeds: run_seeds, words: NUMBERS },
];

fn text<T, E: Into<Box<dyn std::error::Error>>>(outcome: Result<T, E>) -> Result<(), String> {
    let chain = |error: E| {
        let error: Box<dyn std::error::Error> = error.into();
        let mut all = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            all += ": ";
            all += &cause.to_string();
            source = cause.source();
        }
        all
    };
    outcome.map(drop).map_err(chain)
}

/// A file with these bytes, in memory where the system has such a place: readers of large files take paths. It stays open and is
/// written over: a new one each time takes twice as long.
fn with_file<T>(bytes: &[u8], name: &'static str, read: impl FnOnce(&Path) -> T) -> T {
    thread_local!(static FILES: RefCell<HashMap<&'static str, (PathBuf, File)>> = RefCell::default());
    let make = || {
        let memory = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let root = if memory.is_dir() { memory } else { &temporary };
        let folder = root.join(format!("scalebench-fuzz-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(&folder).expect("a folder for inputs");
        let path = folder.join(name);
        let file = File::create(&path).expect("a file for inputs");
        (path, file)
    };
    FILES.with_borrow_mut(|files| {
        let (path, file) = files.entry(name).or_insert_with(make);
        file.rewind()
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.set_len(bytes.len() as u64))
            .expect("an input can be written");
        read(path)
    })
}

fn torch(bytes: &[u8]) -> Result<(), String> {
    let file = text_of(TorchFile::open(bytes, Path::new("x.pth")))?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in names {
        // Views of one element may claim any shape: what they would fill is bounded by nobody but the caller.
        if file
            .info(&name)
            .is_some_and(|(_, shape)| shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).is_some_and(|n| n <= 1 << 16))
        {
            text(file.tensor(&name))?;
        }
    }
    Ok(())
}

fn text_of<T>(outcome: scalebench_metrics::Result<T>) -> Result<T, String> {
    outcome.map_err(|error| error.to_string())
}

fn npz(bytes: &[u8]) -> Result<(), String> {
    with_file(bytes, "x.npz", |path| {
        let mut file = text_of(Npz::open(path))?;
        let names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        for name in names {
            text_of(file.shape(&name))?;
            text_of(file.f64(&name))?;
        }
        Ok(())
    })
}

fn zip(bytes: &[u8]) -> Result<(), String> {
    with_file(bytes, "x.zip", |path| {
        let archive = text_of(ImageArchive::open(path))?;
        (0..archive.len().min(8)).try_for_each(|place| text(archive.image(place)))
    })
}

fn tar(bytes: &[u8]) -> Result<(), String> {
    with_file(bytes, "x.tar", |path| {
        let shards = text_of(Shards::images(path))?;
        (0..shards.len().min(8)).try_for_each(|place| text(shards.image(place)))
    })
}

fn features(bytes: &[u8]) -> Result<(), String> {
    with_file(bytes, "x.safetensors", |path| text(FeatureSet::load(path)))
}

fn statistics(bytes: &[u8]) -> Result<(), String> {
    with_file(bytes, "s.safetensors", |path| text(StatisticsFile::load(path)))
}

fn image(bytes: &[u8]) -> Result<(), String> {
    text(Image::decode(Cursor::new(bytes), Path::new("x.png")))
}

fn method(bytes: &[u8]) -> Result<(), String> {
    thread_local!(static NETWORK: OnceCell<UNetBench> = const { OnceCell::new() });
    let spec = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let spec = MethodSpec::parse(spec, Path::new("x.yaml")).map_err(|error| error.to_string())?;
    NETWORK.with(|network| {
        let config = data("generation/tests/data/models/tiny-sd15/unet/config.json");
        let network = network.get_or_init(|| UNetBench::open(&config, Dtype::F32, &Device::Cpu).expect("the tests' network"));
        for (family, scale) in [("sd15", 4.0), ("pocket", 16.0)] {
            let method = spec.resolve(family, scale, network.sites()).map_err(|error| error.to_string())?;
            method.check((64, 64), (32, 32)).map_err(|error| error.to_string())?;
        }
        Ok(())
    })
}

/// A file beside this crate.
fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Files of a folder that end so, the smaller ones first.
fn all(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(data(folder)).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<Vec<u8>> =
        entries.filter(|path| path.to_string_lossy().ends_with(end)).filter_map(|path| std::fs::read(path).ok()).collect();
    files.sort_by_key(Vec::len);
    files
}

fn torch_seeds() -> Vec<Vec<u8>> {
    // A state dict of one tensor of two values, as `torch.save` wrote it before 1.6.
    let head =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    let object = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02NtQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.";
    let keys = b"\x80\x02]X\x01\x00\x00\x000a.";
    let data = b"\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40";
    let mut seeds = vec![[&head[..], object, keys, data].concat(), [&head[..], object, keys].concat()];
    seeds.extend(all("metrics/tests/data", ".pth"));
    seeds.extend(all("metrics/tests/data", ".pt"));
    seeds.retain(|seed| seed.len() < 1 << 16);
    seeds
}

fn npz_seeds() -> Vec<Vec<u8>> {
    let mut seeds = all("metrics/tests/data", ".npz");
    let dir = std::env::temp_dir().join(format!("scalebench-fuzz-npz-{}", std::process::id()));
    let statistics = scalebench_metrics::Statistics::new(vec![1.0, 2.0], &[1.0, 0.5, 0.5, 2.0]).expect("two by two");
    let file = StatisticsFile { statistics, spatial: None, n: None, provenance: None };
    if file.save_npz(&dir).is_ok() {
        seeds.extend(std::fs::read(&dir));
        drop(std::fs::remove_file(&dir));
    }
    seeds.retain(|seed| seed.len() < 1 << 14);
    seeds
}

/// A stored zip archive of one entry, by the letter of the format.
fn stored(name: &str, data: &[u8]) -> Vec<u8> {
    let crc = crc32(data).to_le_bytes();
    let (size, len) = ((data.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
    let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 33, 0][..], &crc, &size, &size, &len, &[0, 0]].concat();
    let local = [b"PK\x03\x04", &common[..], name.as_bytes(), data].concat();
    let central = [&b"PK\x01\x02\x14\x00"[..], &common, &[0; 14], name.as_bytes()].concat();
    let end = [
        &b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00"[..],
        &(central.len() as u32).to_le_bytes(),
        &(local.len() as u32).to_le_bytes(),
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }))
}

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&name[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat()
}

/// An image of two by two pixels, under a key.
fn small_png() -> Vec<u8> {
    let rows = [0u8, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12];
    let (low, high) = rows.iter().fold((1u32, 0u32), |(a, b), v| ((a + u32::from(*v)) % 65521, (b + a + u32::from(*v)) % 65521));
    let len = rows.len() as u16;
    let data = [&[0x78, 0x01, 0x01][..], &len.to_le_bytes(), &(!len).to_le_bytes(), &rows, &(high << 16 | low).to_be_bytes()].concat();
    let text = chunk(b"tEXt", b"scalebench:key\0abc");
    [
        &b"\x89PNG\r\n\x1a\n"[..],
        &chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 8, 2, 0, 0, 0]),
        &text,
        &chunk(b"IDAT", &data),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

fn png_seeds() -> Vec<Vec<u8>> {
    vec![small_png()]
}

fn image_seeds() -> Vec<Vec<u8>> {
    let jpeg = b"\xff\xd8\xff\xdb\x00\x43\x00\x08\x06\x06\x07\x06\x05\x08\x07\x07\x07\x09\x09\x08\x0a\x0c\x14\x0d\x0c\x0b\x0b\x0c\x19\x12\x13\x0f\x14\x1d\x1a\x1f\x1e\x1d\x1a\x1c\x1c\x20\x24\x2e\x27\x20\x22\x2c\x23\x1c\x1c\x28\x37\x29\x2c\x30\x31\x34\x34\x34\x1f\x27\x39\x3d\x38\x32\x3c\x2e\x33\x34\x32\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xc4\x00\x14\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\xff\xc4\x00\x14\x10\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x37\xff\xd9";
    let webp = b"RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\x00\x00\x00\x10\x07\x10\x11\x11\x88\x88\xfe\x07\x00";
    let mut seeds = vec![small_png(), jpeg.to_vec(), webp.to_vec()];
    for end in [".png", ".jpg", ".jpeg", ".webp"] {
        seeds.extend(all("metrics/tests/data", end).into_iter().filter(|seed| seed.len() < 1 << 13).take(3));
    }
    seeds
}

fn zip_seeds() -> Vec<Vec<u8>> {
    vec![stored("a.png", &small_png()), stored("a/b.png", b"no image"), stored("a.txt", b"x")]
}

/// A tar archive of one file.
fn tarred(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn tar_seeds() -> Vec<Vec<u8>> {
    let end = vec![0; 1024];
    vec![
        [tarred("a.png", &small_png()), end.clone()].concat(),
        [tarred("a.png", &small_png()), tarred("b.txt", b"x"), end.clone()].concat(),
        [tarred("a.txt", b"x"), end].concat(),
    ]
}

fn features_seeds() -> Vec<Vec<u8>> {
    let provenance = || scalebench_metrics::Provenance {
        extractor: "x".into(),
        weights: "y".into(),
        preprocess: scalebench_metrics::Preprocess::default(),
    };
    let set = |n: usize| FeatureSet::new((0..n).map(|i| i.to_string()).collect(), vec![0; n], vec![1.0; 2 * n], 2, provenance());
    let path = std::env::temp_dir().join(format!("scalebench-fuzz-features-{}", std::process::id()));
    let bytes = |n| {
        text_of(set(n)).and_then(|set| text_of(set.save(&path))).ok()?;
        std::fs::read(&path).ok()
    };
    let seeds = [1, 3].into_iter().filter_map(bytes).collect();
    drop(std::fs::remove_file(&path));
    seeds
}

fn statistics_seeds() -> Vec<Vec<u8>> {
    let statistics = || scalebench_metrics::Statistics::new(vec![1.0, 2.0], &[1.0, 0.5, 0.5, 2.0]).expect("two by two");
    let path = std::env::temp_dir().join(format!("scalebench-fuzz-statistics-{}", std::process::id()));
    let bytes = |spatial: bool| {
        let file = StatisticsFile { statistics: statistics(), spatial: spatial.then(statistics), n: Some(9), provenance: None };
        text_of(file.save(&path)).ok()?;
        std::fs::read(&path).ok()
    };
    let seeds = [false, true].into_iter().filter_map(bytes).collect();
    drop(std::fs::remove_file(&path));
    seeds
}

fn method_seeds() -> Vec<Vec<u8>> {
    all("../experiments/methods", ".yaml")
}

fn experiment_seeds() -> Vec<Vec<u8>> {
    [all("../experiments", ".yaml"), all("../experiments/ablations", ".yaml")].concat()
}

fn protocol_seeds() -> Vec<Vec<u8>> {
    all("../experiments/protocols", ".yaml")
}

fn captions_seeds() -> Vec<Vec<u8>> {
    let coco = br#"{"images": [{"id": 9}, {"id": 4}], "annotations": [{"image_id": 9, "id": 1, "caption": "a cat"}, {"image_id": 4, "id": 2, "caption": "a dog"}]}"#;
    vec![coco.to_vec(), b"{\"caption\": \"a cat\", \"n\": 1}\n\n{\"caption\": \" ein Hund \"}\n".to_vec()]
}

fn tables_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x00id,caption\n1,\"a cat, \"\"sitting\"\"\"\n2,007\n".to_vec(),
        b"\x01id\tcaption\n1\ta \"big\" cat\n".to_vec(),
        b"\x02PAR1\x15\x00\x15\x00\x00\x00\x00\x00PAR1".to_vec(),
    ]
}

fn run_seeds() -> Vec<Vec<u8>> {
    let key = "0".repeat(64);
    vec![
        format!("\u{0}{{\"index\":0,\"prompt\":\"a cat\",\"seed\":7,\"key\":\"{key}\",\"blake3\":\"{key}\"}}\n").into_bytes(),
        b"\x01{\"index\":0,\"seconds\":1.5,\"processor_seconds\":null,\"peak_memory_bytes\":7}\n".to_vec(),
        format!("\u{2}{key}  run.yaml\n{key}  results.csv\n").into_bytes(),
        [
            b"\x03".to_vec(),
            std::fs::read(data("../reports/quick/run.yaml")).unwrap_or_else(|_| b"command: x\nexperiment: {name: x}\n".to_vec()),
        ]
        .concat(),
    ]
}
