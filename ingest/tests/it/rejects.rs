//! Every reason for dropping a record can be met, is counted, and is listed; nothing is lost.

use imp_schemas::reject::RejectReason::{self, *};

use crate::common::{World, encode, jpeg, png, tar_of, wav};

/// Ingests with a budget of everything, and returns the rejects after checking that the counts add up.
fn rejects_of(world: &World, corpus: &str) -> Vec<(RejectReason, String)> {
    let report = world.ingest(&format!("max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"c\"\n{corpus}")).unwrap();
    let report = &report.corpora[0];
    let rejects = world.rejects("c");
    assert_eq!(report.n_inputs, report.n_records + rejects.len() as u64);
    assert_eq!(report.n_rejected.values().sum::<u64>(), rejects.len() as u64);
    for (reason, n) in &report.n_rejected {
        assert_eq!(rejects.iter().filter(|(r, _)| r == reason).count() as u64, *n, "{reason}");
    }
    assert_eq!(world.rows("c").len() as u64, report.n_records);
    rejects
}

fn check(rejects: &[(RejectReason, String)], want: &[(RejectReason, &str)]) {
    let found = rejects.iter().map(|(reason, text)| format!("{reason}: {text}")).collect::<Vec<_>>().join("\n");
    assert_eq!(rejects.len(), want.len(), "\n{found}");
    for (reason, part) in want {
        assert!(rejects.iter().any(|(r, text)| r == reason && text.contains(part)), "no {reason} {part} in\n{found}");
    }
}

#[test]
fn media_that_do_not_decode_are_rejected_by_what_is_wrong_with_them() {
    let world = World::new();
    let whole = encode(64, 1, image::ImageFormat::Jpeg);
    world.put("c/good.jpg", &whole);
    world.put("c/cut.jpg", &whole[..whole.len() / 2]);
    world.put("c/empty.jpg", "");
    world.put("c/page.jpg", "<!DOCTYPE html><html><body>404</body></html>");
    world.put("c/wide.png", encode(200, 3, image::ImageFormat::Png));
    world.put("c/heavy.png", vec![0x89; (1 << 20) + 1]);
    let mut flipped = png(4);
    let at = flipped.len() - 30;
    flipped[at] ^= 0x55;
    world.put("c/flipped.png", flipped);
    world.put("c/tiny.png", encode(4, 5, image::ImageFormat::Png));
    std::fs::create_dir_all(world.root().join("c/folder.jpg")).unwrap();
    let names = [
        "good.jpg",
        "cut.jpg",
        "empty.jpg",
        "page.jpg",
        "wide.png",
        "heavy.png",
        "flipped.png",
        "tiny.png",
        "none.jpg",
        "folder.jpg",
    ];
    world.put("c/t.csv", format!("path,caption\n{}", names.map(|name| format!("{name},words\n")).concat()));
    let corpus = "kind = \"image-text\"\npath = \"c/t.csv\"\n\
                  limits = { max_media_mib = 1, max_pixels = 20000, min_side = 8 }\n";
    let rejects = rejects_of(&world, corpus);
    check(
        &rejects,
        &[
            (Truncated, "t.csv 3: `cut.jpg`"),
            (EmptyFile, "t.csv 4: `empty.jpg`"),
            (UnknownFormat, "t.csv 5: `page.jpg`"),
            (TooLarge, "t.csv 6: `wide.png`"),
            (TooLarge, "t.csv 7: `heavy.png`: the file has 1048577 bytes, the limit is 1048576"),
            (Corrupt, "t.csv 8: `flipped.png`"),
            (TooSmall, "t.csv 9: `tiny.png`: its shorter side has 4 pixels, the limit is 8"),
            (MissingFile, "t.csv 10: `none.jpg`"),
            (Unreadable, "t.csv 11: `folder.jpg`"),
        ],
    );
}

#[test]
fn a_known_container_with_an_unknown_codec_is_named_as_such() {
    let world = World::new();
    let mut odd = wav(1);
    // The format tag of the `fmt ` chunk: 0x0270 is Sony ATRAC3, which nothing here decodes.
    let tag = odd.windows(4).position(|w| w == b"fmt ").unwrap() + 8;
    odd[tag..tag + 2].copy_from_slice(&[0x70, 0x02]);
    world.put("c/good.wav", wav(2));
    world.put("c/odd.wav", odd);
    world.put("c/short.wav", wav(3));
    world.put("c/t.csv", "path,caption\ngood.wav,a\nodd.wav,b\n");
    let rejects = rejects_of(&world, "kind = \"audio-text\"\npath = \"c/t.csv\"\n");
    check(&rejects, &[(UnsupportedCodec, "t.csv 3: `odd.wav`")]);
    world.put("c/t.csv", "path,caption\ngood.wav,a\nshort.wav,b\n");
    let message = world
        .ingest("max_reject_share = 1.0\n[[ingest.corpus]]\nname = \"c\"\nkind = \"audio-text\"\npath = \"c/t.csv\"\nlimits = { min_seconds = 0.5 }\n")
        .unwrap_err()
        .to_string();
    assert!(message.contains("too_small") && message.contains("0.100 s"), "{message}");
}

#[test]
fn rows_that_say_nothing_usable_are_rejected_with_their_line_and_the_rest_goes_on() {
    let world = World::new();
    for name in ["a", "b", "g", "z"] {
        world.put(&format!("c/{name}.jpg"), jpeg(1));
    }
    let mut table =
        b"path,caption\na.jpg,first\nb.jpg\nb.jpg,x,y,z\n,orphan\nc.jpg,\nd.jpg,  \nbad.jpg,caf\xe9\n".to_vec();
    table.extend_from_slice(
        b"../../etc/passwd,outside\n/etc/passwd,absolute\na.jpg,first\ng.jpg,\"never closed\nz.jpg,last\n",
    );
    world.put("c/t.csv", table);
    let rejects = rejects_of(&world, "kind = \"image-text\"\npath = \"c/t.csv\"\n");
    check(
        &rejects,
        &[
            (MalformedRow, "t.csv 3: 1 fields, wanted 2"),
            (MalformedRow, "t.csv 4: 4 fields, wanted 2"),
            (MalformedRow, "t.csv 5: the path is blank"),
            (EmptyCaption, "t.csv 6: `c.jpg`"),
            (EmptyCaption, "t.csv 7: `d.jpg`"),
            (InvalidText, "t.csv 8: the row: byte 11 is 0xe9"),
            (UnsafePath, "t.csv 9: `../../etc/passwd` leads out of the corpus"),
            (UnsafePath, "t.csv 10: `/etc/passwd` is absolute"),
            (DuplicateKey, "t.csv 11: `a.jpg` stood in line 2 with the same words"),
            (MalformedRow, "t.csv 12: a quote is opened and never closed"),
        ],
    );
    let keys: Vec<String> = world.rows("c").into_iter().map(|row| row.key).collect();
    assert!(keys.contains(&"z".to_owned()) && keys.len() == 2, "{keys:?}");
}

#[test]
fn broken_json_lines_are_rejected_with_their_line() {
    let world = World::new();
    world.put("c/a.jpg", jpeg(1));
    let deep = format!("{{\"image\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let lines = [
        r#"{"image":"a.jpg","text":"ok"}"#,
        r#"{"image":"b.jpg","text":}"#,
        "",
        r#"{"image":"c.jpg"}"#,
        r#"{"image":"d.jpg","text":null}"#,
        r#"{"image":"e.jpg","text":{"a":1}}"#,
        r#"["no","object"]"#,
        &deep,
        r#"{"image":"a.jpg","text":"lone \ud83d surrogate"}"#,
    ];
    world.put("c/t.jsonl", lines.join("\n"));
    let corpus = "kind = \"image-text\"\npath = \"c/t.jsonl\"\ncolumns = { path = \"image\", caption = \"text\" }\n";
    check(
        &rejects_of(&world, corpus),
        &[
            (MalformedRow, "t.jsonl 2:"),
            (EmptyCaption, "t.jsonl 4:"),
            (EmptyCaption, "t.jsonl 5:"),
            (MalformedRow, "t.jsonl 6: `text` is an object, wanted a string"),
            (MalformedRow, "t.jsonl 7: no JSON object"),
            (MalformedRow, "t.jsonl 8:"),
            (MalformedRow, "t.jsonl 9:"),
        ],
    );
}

#[test]
fn one_key_twice_and_classes_outside_the_list_are_rejected() {
    let world = World::new();
    for name in ["a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg"] {
        world.put(&format!("c/{name}"), if name.ends_with("png") { png(1) } else { jpeg(1) });
    }
    world.put("classes.txt", "cat\ndog\n");
    world.put("c/t.csv", "path,label\na.jpg,cat\na.png,dog\nb.jpg,1\nc.jpg,2\nd.jpg,cow\na.jpg,dog\n");
    let corpus = "kind = \"image-text\"\npath = \"c/t.csv\"\nclass_names = \"classes.txt\"\n";
    check(
        &rejects_of(&world, corpus),
        &[
            (DuplicateKey, "t.csv 3: `a.png`: `a.jpg` has the key `a` already"),
            (UnknownClass, "t.csv 5: `c.jpg`: class `2`, wanted a name of the class list or 0 to 1"),
            (UnknownClass, "t.csv 6: `d.jpg`: class `cow`"),
            (DuplicateKey, "t.csv 7: `a.jpg` stood in line 2 with another label"),
        ],
    );
}

#[test]
fn a_folder_names_captions_without_media_and_links_that_lead_out() {
    let world = World::new();
    world.put("c/a.jpg", jpeg(1));
    world.put("c/a.txt", "words");
    world.put("c/b.txt", "its picture is lost");
    world.put("c/d.jpg", jpeg(2));
    world.put("c/e.jpg", jpeg(3));
    world.put("c/e.txt", "  \n ");
    world.put("c/f.jpg", jpeg(4));
    world.put("c/f.txt", b"caf\xe9");
    world.put("c/g.jpg", jpeg(5));
    world.put("c/g.json", "{\"caption\":");
    world.put("secret.jpg", jpeg(9));
    std::os::unix::fs::symlink(world.root().join("secret.jpg"), world.root().join("c/h.jpg")).unwrap();
    check(
        &rejects_of(&world, "kind = \"image-text\"\npath = \"c\"\n"),
        &[
            (MissingMedium, "b.txt"),
            (EmptyCaption, "d.jpg"),
            (EmptyCaption, "e.jpg"),
            (InvalidText, "f.txt: byte 3 is 0xe9"),
            (MalformedRow, "g.json"),
            (UnsafePath, "h.jpg"),
        ],
    );
}

#[test]
fn a_tar_is_not_trusted() {
    let world = World::new();
    let medium = jpeg(1);
    let mut builder = tar::Builder::new(tar_of(&[
        ("../../evil.jpg", &medium),
        ("/abs/evil.jpg", &medium),
        ("a.jpg", &medium),
        ("a.txt", b"first"),
        ("a.jpg", &medium),
        ("b.txt", b"no picture"),
        ("c.jpg", &medium),
        ("._a.jpg", b"litter"),
    ]));
    // The end blocks of the first part are cut off, so that the link follows as a member.
    let n_members = builder.get_ref().len() - 1024;
    builder.get_mut().truncate(n_members);
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "d.jpg", "/etc/passwd").unwrap();
    world.put("c.tar", builder.into_inner().unwrap());
    check(
        &rejects_of(&world, "kind = \"image-text\"\npath = \"c.tar\"\n"),
        &[
            (UnsafePath, "../../evil.jpg"),
            (UnsafePath, "/abs/evil.jpg"),
            (DuplicateKey, "c.tar/a.jpg 4"),
            (MissingMedium, "c.tar/b.txt"),
            (EmptyCaption, "c.tar/c.jpg"),
            (UnsafePath, "c.tar/d.jpg"),
        ],
    );
    assert!(!world.path("evil.jpg").exists());
}

#[test]
fn a_cut_or_lying_tar_keeps_what_stood_before() {
    let world = World::new();
    let (medium, other) = (jpeg(1), jpeg(2));
    let members: [(&str, &[u8]); 4] = [("a.txt", b"one"), ("a.jpg", &medium), ("b.txt", b"two"), ("b.jpg", &other)];
    let whole = tar_of(&members);
    let gzip = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, bytes).unwrap();
        gz.finish().unwrap()
    };
    let b_jpg = 512 * 2 + 512 + medium.len().next_multiple_of(512) + 512 * 2;
    let mut lying = whole[..b_jpg].to_vec();
    let mut header = tar::Header::new_gnu();
    header.set_path("b.jpg").unwrap();
    header.set_size(8 << 30);
    header.set_cksum();
    lying.extend_from_slice(header.as_bytes());
    lying.extend_from_slice(&medium);
    let mut damaged = whole.clone();
    damaged[b_jpg + 150] ^= 0xff;
    let gz = gzip(&whole);
    let cases = [
        ("c.tar", whole[..b_jpg + 512 + 100].to_vec(), Truncated),
        ("c.tar", lying, Truncated),
        ("c.tar", damaged, Corrupt),
        ("c.tar.gz", gzip(&whole[..b_jpg + 512 + 100]), Truncated),
        ("c.tar.gz", gz[..gz.len() - 100].to_vec(), Truncated),
    ];
    for (file, bytes, reason) in cases {
        world.put(file, bytes);
        let rejects = rejects_of(&world, &format!("kind = \"image-text\"\npath = \"{file}\"\n"));
        check(&rejects, &[(reason, file), (MissingMedium, "b.txt")]);
        assert_eq!(world.rows("c").len(), 1);
    }
}

#[test]
fn a_compressed_member_of_zeros_is_refused_without_being_unpacked() {
    let world = World::new();
    let good = jpeg(1);
    let zeros = vec![0; 40 << 20];
    let tar = tar_of(&[("bomb.jpg", &zeros), ("bomb.txt", b"boom"), ("good.jpg", &good), ("good.txt", b"fine")]);
    world.put("c.tar.zst", zstd::encode_all(&tar[..], 1).unwrap());
    let rejects = rejects_of(&world, "kind = \"image-text\"\npath = \"c.tar.zst\"\nlimits = { max_media_mib = 8 }\n");
    check(&rejects, &[(TooLarge, "the member has 41943040 bytes, the limit is 8388608")]);
}
