//! Files of weights by `torch.save`, arrays, images and archives.

use std::io::{Cursor, Write};
use std::path::Path;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::{Bench, Case, inception, text};

fn zip(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn stored(entries: &[(&str, &[u8])]) -> Vec<u8> {
    zip(entries, zip::CompressionMethod::Stored)
}

/// What every file by `torch.save` before PyTorch 1.6 starts with: magic, version, a little-endian machine.
const LEGACY: &[u8] =
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";

fn legacy(object: &[u8]) -> Vec<u8> {
    [LEGACY, object].concat()
}

/// A dict with one tensor of `n` f32 with these sizes and strides.
fn tensor(n: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [
        &b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"[..],
        n,
        b"tQK\x00(",
        shape,
        b"t(",
        strides,
        b"t\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

fn weights(bench: &Bench) -> Vec<Case> {
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty.pth", Vec::new()),
        ("text.pth", b"no weights at all".to_vec()),
        ("magic.pth", LEGACY[..15].to_vec()),
        ("header.pth", LEGACY.to_vec()),
        // Each would run a program if a pickle were loaded as Python does it.
        ("system.pth", legacy(b"\x80\x02cos\nsystem\nX\x06\x00\x00\x00id >/x\x85R.")),
        ("system-zip.pth", stored(&[("a/data.pkl", b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.")])),
        ("eval.pth", legacy(b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.")),
        ("protocol.pth", legacy(b"\x80\x05N.")),
        ("opcode.pth", legacy(b"\x80\x02\x96N.")),
        ("deep.pth", legacy(&[&b"\x80\x02"[..], &b"]".repeat(100_000), b"."].concat())),
        ("marks.pth", legacy(&[&b"\x80\x02"[..], &b"(".repeat(1_000_000), b"."].concat())),
        ("cycle.pth", legacy(b"\x80\x02]q\x00h\x00ah\x00.")),
        ("memo.pth", legacy(b"\x80\x02j\xff\xff\xff\xff.")),
        ("long-text.pth", legacy(b"\x80\x02X\xff\xff\xff\xffabc.")),
        ("list.pth", legacy(b"\x80\x02].\x80\x02].")),
        ("number.pth", legacy(b"\x80\x02K\x01.\x80\x02].")),
        ("huge-storage.pth", legacy(&tensor(huge, huge, b"K\x01"))),
        ("huge-shape.pth", legacy(&tensor(b"K\x04", &[&huge[..], huge, huge].concat(), b"K\x01K\x01K\x01"))),
        ("outside.pth", legacy(&tensor(b"K\x04", b"K\x05", b"K\x01"))),
        ("stride.pth", legacy(&tensor(b"K\x04", b"K\x02", huge))),
        ("negative.pth", legacy(&tensor(b"K\x04", b"J\xff\xff\xff\xff", b"K\x01"))),
        ("zip.pth", stored(&[("readme.txt", b"x")])),
        ("script.pth", stored(&[("a/data.pkl", b"\x80\x02}."), ("a/code/x.py", b""), ("a/constants.pkl", b"")])),
        ("deflated.pth", zip(&[("a/data.pkl", &b"\x80\x02}.".repeat(100))], zip::CompressionMethod::Deflated)),
        ("cut.pth", stored(&[("a/data.pkl", b"\x80\x02}.")])[..40].to_vec()),
        ("up.pth", stored(&[("../../data.pkl", b"\x80\x02}.")])),
    ];
    let case = |(name, bytes): (&str, Vec<u8>)| {
        let (file, out) = (bench.file(name, bytes), bench.folder().join("out.safetensors"));
        Case::new(&["weights", "convert", text(&file), "--out", text(&out)], &[name]).writes(&out)
    };
    files.into_iter().map(case).collect()
}

/// A `.npy` file of version 1.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

fn doubles(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn arrays(bench: &Bench) -> Vec<Case> {
    let head = |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mu = npy(&head("<f8", "(2,)"), &doubles(&[1.0, 2.0]));
    let with = |sigma: Vec<u8>| stored(&[("mu.npy", &mu), ("sigma.npy", &sigma)]);
    let square = |values: &[f64]| npy(&head("<f8", "(2, 2)"), &doubles(values));
    let good = with(square(&[1.0, 0.0, 0.0, 1.0]));
    let mut flipped = good.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    let files: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.npz", Vec::new(), ""),
        ("text.npz", b"no arrays".to_vec(), ""),
        ("none.npz", stored(&[]), ""),
        ("no-sigma.npz", stored(&[("mu.npy", &mu)]), "sigma"),
        ("no-mu.npz", stored(&[("sigma.npy", &square(&[1.0, 0.0, 0.0, 1.0]))]), ""),
        ("shape.npz", with(npy(&head("<f8", "(3, 3)"), &doubles(&[0.0; 9]))), "sigma"),
        ("huge.npz", with(npy(&head("<f8", "(18446744073709551615, 18446744073709551615)"), &[])), "sigma"),
        ("large.npz", stored(&[("mu.npy", &npy(&head("<f8", "(1000000000000,)"), &[0; 64])), ("sigma.npy", &mu)]), "sigma"),
        ("nan.npz", with(square(&[f64::NAN, 0.0, 0.0, 1.0])), "sigma"),
        ("inf.npz", with(square(&[1.0, f64::INFINITY, f64::INFINITY, 1.0])), "sigma"),
        ("asymmetric.npz", with(square(&[1.0, 0.5, 0.1, 1.0])), "sigma"),
        ("negative.npz", with(square(&[-1.0, 0.0, 0.0, -1.0])), ""),
        ("objects.npz", with(npy(&head("|O", "(2, 2)"), b"cos\nsystem\n")), "sigma"),
        ("complex.npz", with(npy(&head("<c16", "(2, 2)"), &[0; 64])), "sigma"),
        ("text-array.npz", with(npy(&head("<U4", "(2, 2)"), &[0; 64])), "sigma"),
        ("short.npz", with(npy(&head("<f8", "(2, 2)"), &[0; 31])), "sigma"),
        ("long.npz", with(npy(&head("<f8", "(2, 2)"), &[0; 33])), "sigma"),
        ("no-header.npz", with(b"\x93NUMPY\x01\x00\xff\xff".to_vec()), "sigma"),
        ("bad-header.npz", with(npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2, 2)}", &[0; 64])), "sigma"),
        ("version.npz", with(b"\x93NUMPY\x09\x00\x00\x00".to_vec()), "sigma"),
        ("flipped.npz", flipped, ""),
        ("cut.npz", good[..good.len() - 9].to_vec(), ""),
    ];
    let case = |(name, bytes, key): (&str, Vec<u8>, &str)| {
        let (file, out) = (bench.file(name, bytes), bench.folder().join("out.npz"));
        // Whether eigenvalues are those of a covariance is seen where a distance is taken.
        match name {
            "negative.npz" => Case::new(&["score", "--real", text(&file), "--fake", text(&file), "--metrics", "fid"], &[]),
            _ => Case::new(&["stats", text(&file), "--out", text(&out)], &[name, key]).writes(&out),
        }
    };
    files.into_iter().map(case).collect()
}

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&name[..], data].concat();
    let crc = (0..).zip(&body).fold(!0u32, |crc, (_, byte)| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    [&(data.len() as u32).to_be_bytes()[..], &body, &(!crc).to_be_bytes()].concat()
}

/// A PNG that announces a size, with these other chunks.
fn announced(width: u32, height: u32, chunks: &[u8]) -> Vec<u8> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &head), chunks, &chunk(b"IEND", &[])].concat()
}

fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 80, 80);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&[7; 80 * 80 * 3]).unwrap();
    bytes
}

fn features(bench: &Bench, images: &Path, names: &[&str]) -> Case {
    let out = bench.folder().join("out.safetensors");
    let network = inception();
    Case::new(&["features", "--images", text(images), "--extractor", text(&network), "--out", text(&out)], names).writes(&out)
}

fn images(bench: &Bench) -> Vec<Case> {
    let good = png();
    let mut flipped = good.clone();
    let at = flipped.len() - 20;
    flipped[at] ^= 1;
    let jpeg = |height: u16, width: u16| {
        let size = [&height.to_be_bytes()[..], &width.to_be_bytes()].concat();
        [
            &b"\xff\xd8\xff\xc0\x00\x11\x08"[..],
            &size,
            b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00\xff\xd9",
        ]
        .concat()
    };
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty.png", Vec::new()),
        ("text.png", b"no image".to_vec()),
        ("huge.png", announced(100_000, 100_000, &chunk(b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01"))),
        ("largest.png", announced(0x7fff_ffff, 0x7fff_ffff, &chunk(b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01"))),
        ("zero.png", announced(0, 0, &chunk(b"IDAT", &[]))),
        ("no-data.png", announced(80, 80, &[])),
        ("cut.png", good[..good.len() / 2].to_vec()),
        ("flipped.png", flipped),
        (
            "gif.png",
            b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;".to_vec(),
        ),
        ("huge.jpg", jpeg(65_500, 65_500)),
        ("cut.jpg", b"\xff\xd8\xff\xc0\x00".to_vec()),
        ("zero.jpg", jpeg(0, 0)),
        ("cut.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8L\xff\xff\xff\x7f\x2f".to_vec()),
        ("huge.webp", b"RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\xff\xff\xff\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec()),
    ];
    let case = |(name, bytes): (&str, Vec<u8>)| features(bench, bench.file(name, bytes).parent().unwrap(), &[name]);
    files.into_iter().map(case).collect()
}

/// A tar archive of one entry.
fn tar(name: &str, kind: u8, size: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..124 + size.len()].copy_from_slice(size.as_bytes());
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend([0; 1024]);
    bytes
}

fn archives(bench: &Bench) -> Vec<Case> {
    let good = png();
    let archive = stored(&[("a.png", &good), ("b.png", &good)]);
    let mut flipped = archive.clone();
    flipped[60] ^= 1;
    let size = format!("{:011o}", good.len());
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty.zip", Vec::new()),
        ("text.zip", b"no archive".to_vec()),
        ("none.zip", stored(&[("a.txt", b"x")])),
        ("cut.zip", archive[..archive.len() - 30].to_vec()),
        ("flipped.zip", flipped),
        ("bad-image.zip", stored(&[("../../a.png", b"no image")])),
        ("bomb.zip", zip(&[("a.png", &announced(60_000, 60_000, &chunk(b"IDAT", &[0; 100_000])))], zip::CompressionMethod::Deflated)),
        ("empty.tar", Vec::new()),
        ("text.tar", b"no archive. ".repeat(100)),
        ("none.tar", tar("a.txt", b'0', "00000000001", b"x")),
        ("cut.tar", tar("a.png", b'0', &size, &good)[..600].to_vec()),
        ("size.tar", tar("a.png", b'0', "77777777777", &good)),
        ("link.tar", tar("a.png", b'2', "00000000000", b"")),
        ("bad-image.tar", tar("a.png", b'0', "00000000010", b"no image")),
        ("long-name.tar", tar("././@LongLink", b'L', "77777777777", b"x")),
        ("packed.tar", b"\x1f\x8b\x08\x00\x00".to_vec()),
    ];
    let case = |(name, bytes): (&str, Vec<u8>)| features(bench, &bench.file(name, bytes), &[name]);
    files.into_iter().map(case).collect()
}

/// Weights of the feature network.
fn networks(bench: &Bench) -> Vec<Case> {
    let good = std::fs::read(inception().join("model.safetensors")).unwrap();
    let photos = bench.file("a.png", png());
    let mut cases = Vec::new();
    let mut infinite = good.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    for (name, bytes) in [("cut", &good[..good.len() / 2]), ("infinite", &infinite[..]), ("empty", &[][..]), ("text", b"no weights")] {
        let (file, out) = (bench.file(&format!("{name}.safetensors"), bytes), bench.folder().join("out.safetensors"));
        let args = ["features", "--images", text(photos.parent().unwrap()), "--extractor", text(&file), "--out", text(&out)];
        cases.push(Case::new(&args, &[name]).writes(&out));
    }
    for (config, key) in [
        (r#"{"model_type": "clip", "projection_dim": 0}"#, "projection_dim"),
        (r#"{"model_type": "clip", "vision_config": {"image_size": 0}}"#, "image_size"),
        (r#"{"model_type": "clip", "vision_config": {"patch_size": 1000000000000}}"#, "patch_size"),
        (r#"{"model_type": "clip", "text_config": {"num_attention_heads": 7}}"#, "num_attention_heads"),
        (r#"{"model_type": "dinov2", "hidden_size": -1}"#, "hidden_size"),
        (r#"{"model_type": "dinov2", "num_attention_heads": 7}"#, "num_attention_heads"),
        (r#"{"model_type": "dinov2", "mlp_ratio": 1e300}"#, "mlp_ratio"),
        (r#"{"model_type": "dinov2", "layer_norm_eps": "x"}"#, "layer_norm_eps"),
        (r#"{"model_type": "resnet"}"#, "resnet"),
        (r#"{"model_type": "#, "config.json"),
    ] {
        let file = bench.file("config.json", config);
        let (folder, out) = (file.parent().unwrap(), bench.folder().join("out.safetensors"));
        let args = ["features", "--images", text(photos.parent().unwrap()), "--extractor", text(folder), "--out", text(&out)];
        cases.push(Case::new(&args, &["config.json", key]).writes(&out));
    }
    cases
}

pub(crate) fn cases(bench: &Bench) -> Vec<Case> {
    [weights(bench), arrays(bench), images(bench), archives(bench), networks(bench)].into_iter().flatten().collect()
}
