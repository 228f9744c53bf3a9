//! Every form of corpus gives the records that its files say.

use imp_schemas::reject::RejectReason;

use crate::common::{Seen, World, jpeg, mp4, png, tar_of, wav};

fn by_key(mut rows: Vec<Seen>) -> Vec<Seen> {
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    rows
}

#[test]
fn a_folder_with_sidecars_gives_captions_from_txt_and_json() {
    let world = World::new();
    world.put("photos/a/1.jpg", jpeg(1));
    world.put("photos/a/1.txt", "a first picture\n\nseen twice\n");
    world.put("photos/a/2.png", png(2));
    world.put("photos/a/2.json", r#"{"captions": ["from json"], "label": "cat"}"#);
    world.put("photos/README.txt", "about this corpus");
    world.put("photos/.DS_Store", "litter");
    world.put("photos/a/notes.csv", "x");
    let report =
        world.ingest("[[ingest.corpus]]\nname = \"photos\"\nkind = \"image-text\"\npath = \"photos\"\n").unwrap();
    assert_eq!((report.corpora[0].n_inputs, report.corpora[0].n_records, report.corpora[0].n_ignored), (2, 2, 2));
    let rows = by_key(world.rows("photos"));
    assert_eq!(rows[0].key, "a/1");
    assert_eq!(rows[0].captions, ["a first picture", "seen twice"]);
    assert_eq!((rows[0].label.as_deref(), rows[0].label_id), (None, None));
    assert_eq!((rows[0].media.as_slice(), rows[0].media_path.as_str()), (jpeg(1).as_slice(), "1.jpg"));
    assert_eq!((rows[1].captions.as_slice(), rows[1].label.as_deref()), (&["from json".to_owned()][..], Some("cat")));
    assert_eq!((rows[0].codec.as_str(), rows[1].codec.as_str()), ("jpeg", "png"));
    assert_eq!(world.manifest("photos").classes, ["cat"]);
}

#[test]
fn class_folders_give_labels_and_sentences_about_them() {
    let world = World::new();
    for (seed, class) in ["Acoustic_guitar", "Bark"].into_iter().enumerate() {
        for take in 0..2 {
            world.put(&format!("sounds/{class}/{take}.wav"), wav(seed as u32 * 2 + take));
        }
    }
    world.put("sounds/classes.txt", "not a caption");
    let config = "[[ingest.corpus]]\nname = \"sounds\"\nkind = \"audio-text\"\npath = \"sounds\"\n\
                  caption_from_label = [\"the sound of a {}\", \"a {}\"]\n";
    let report = world.ingest(config).unwrap();
    assert_eq!((report.corpora[0].n_records, report.corpora[0].n_ignored), (4, 1));
    let rows = by_key(world.rows("sounds"));
    assert_eq!(rows[0].key, "Acoustic_guitar/0");
    assert_eq!((rows[0].label.as_deref(), rows[0].label_id), (Some("Acoustic_guitar"), Some(0)));
    assert_eq!(rows[0].captions, ["the sound of a Acoustic guitar", "a Acoustic guitar"]);
    assert_eq!(rows[3].label_id, Some(1));
    assert_eq!(world.manifest("sounds").classes, ["Acoustic_guitar", "Bark"]);
}

#[test]
fn webdataset_tars_plain_and_compressed_give_the_same_records() {
    let world = World::new();
    let members =
        [("d/000.jpg", jpeg(0)), ("d/000.cls", b"1".to_vec()), ("d/001.png", png(1)), ("d/001.cls", b"cat".to_vec())];
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let plain = tar_of(&members);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gz, &plain).unwrap();
    world.put("classes.txt", "cat\ndog\n");
    let mut all = Vec::new();
    let forms = [
        ("a.tar", plain.clone()),
        ("b.tar.gz", gz.finish().unwrap()),
        ("c.tar.zst", zstd::encode_all(&plain[..], 3).unwrap()),
    ];
    for (file, bytes) in forms {
        world.put(file, bytes);
        let name = &file[..1];
        let corpus = format!(
            "[[ingest.corpus]]\nname = \"{name}\"\nkind = \"image-text\"\npath = \"{file}\"\nclass_names = \"classes.txt\"\n"
        );
        world.ingest(&corpus).unwrap();
        let mut rows = by_key(world.rows(name));
        assert_eq!(rows[0].source, format!("{file}/d/000.jpg"));
        rows.iter_mut().for_each(|row| row.source = String::new());
        all.push(rows);
    }
    assert_eq!(all[0].len(), 2);
    assert_eq!((all[0][0].label.as_deref(), all[0][0].label_id), (Some("dog"), Some(1)));
    assert_eq!((all[0][1].label.as_deref(), all[0][1].media.clone()), (Some("cat"), png(1)));
    assert!(all.iter().all(|rows| *rows == all[0]));
}

#[test]
fn a_glob_of_tars_takes_its_splits_from_their_names() {
    let world = World::new();
    for (tar, keys) in
        [("w/x-train-0.tar", ["0", "1"]), ("w/x-train-1.tar", ["2", "3"]), ("w/x-test-0.tar", ["4", "5"])]
    {
        let media: Vec<Vec<u8>> = keys.iter().map(|key| jpeg(key.parse().unwrap())).collect();
        let names: Vec<[String; 2]> = keys.iter().map(|key| [format!("{key}.jpg"), format!("{key}.txt")]).collect();
        let mut members: Vec<(&str, &[u8])> = Vec::new();
        for (medium, [jpg, txt]) in media.iter().zip(&names) {
            members.extend([(jpg.as_str(), medium.as_slice()), (txt.as_str(), b"a picture".as_slice())]);
        }
        world.put(tar, tar_of(&members));
    }
    let config = |globs: &str| {
        format!(
            "[[ingest.corpus]]\nname = \"w\"\nkind = \"image-text\"\npath = \"w/*.tar\"\nsplit = {{ from_path = {{ {globs} }} }}\n"
        )
    };
    let report = world.ingest(&config("train = \"x-train-*\", test = \"x-test-*\"")).unwrap();
    assert_eq!(report.corpora[0].splits, [("train".to_owned(), 4), ("test".to_owned(), 2)]);
    let message = world.ingest(&config("train = \"x-train-*\", test = \"y-*\"")).unwrap_err().to_string();
    assert!(
        message.contains("x-test-0.tar/4.jpg") && message.contains("no globs") && message.contains("`y-*`"),
        "{message}"
    );
}

#[test]
fn several_rows_of_one_path_are_one_record_with_several_captions() {
    let world = World::new();
    world.put("t/img/a.jpg", jpeg(1));
    world.put("t/img/b.jpg", jpeg(2));
    let table = "\u{feff}path,caption,split\r\nimg/a.jpg,\"one, two\",train\r\n./img/a.jpg,\"he said \"\"hi\"\"\",train\r\nimg/b.jpg,\"line one\nline two\",test\r\n";
    world.put("t/captions.csv", table);
    world.put("t/captions.tsv", "path\tcaption\timg\nimg/a.jpg\tone, two\tx\n");
    let report =
        world.ingest("[[ingest.corpus]]\nname = \"t\"\nkind = \"image-text\"\npath = \"t/captions.csv\"\n").unwrap();
    assert_eq!(report.corpora[0].n_inputs, 2);
    assert_eq!(report.corpora[0].splits, [("train".to_owned(), 1), ("test".to_owned(), 1)]);
    let rows = by_key(world.rows("t"));
    assert_eq!(rows[0].captions, ["one, two", "he said \"hi\""]);
    assert_eq!(rows[0].n_tokens.len(), 2);
    assert_eq!((rows[0].key.as_str(), rows[0].source.as_str()), ("img/a", "img/a.jpg"));
    assert_eq!((rows[1].captions.as_slice(), rows[1].split.as_str()), (&["line one\nline two".to_owned()][..], "test"));
    world.ingest("[[ingest.corpus]]\nname = \"tsv\"\nkind = \"image-text\"\npath = \"t/captions.tsv\"\n").unwrap();
    assert_eq!(world.rows("tsv")[0].captions, ["one, two"]);
}

#[test]
fn jsonl_with_its_own_column_names_is_read() {
    let world = World::new();
    world.put("s/a.wav", wav(1));
    world.put("s/b.wav", wav(2));
    world.put(
        "s/t.jsonl",
        "{\"audio\":\"a.wav\",\"text\":\"bin blue\"}\n\n{\"audio\":\"b.wav\",\"text\":[\"one\",\"two\"],\"more\":1}",
    );
    let config = "[[ingest.corpus]]\nname = \"s\"\nkind = \"audio-text\"\npath = \"s/t.jsonl\"\n\
                  columns = { path = \"audio\", caption = \"text\" }\n";
    world.ingest(config).unwrap();
    let rows = by_key(world.rows("s"));
    assert_eq!(rows[0].captions, ["bin blue"]);
    assert_eq!(rows[1].captions, ["one", "two"]);
    assert_eq!(rows[0].codec, "pcm_s16le");
}

#[test]
fn a_table_whose_media_lie_in_a_tar_finds_them_by_the_end_of_their_path() {
    let world = World::new();
    let (one, two, three) = (jpeg(1), jpeg(2), jpeg(3));
    world
        .put("d/media.tar", tar_of(&[("top/train/0/a.JPG", &one), ("top/train/1/a.JPG", &two), ("top/b.JPG", &three)]));
    world.put(
        "d/labels.csv",
        "path,label,split\ntrain/0/a.JPG,0,train\ntrain/1/a.JPG,1,train\nnone.JPG,1,train\na.JPG,1,train\n",
    );
    let config = "max_reject_share = 0.5\n[[ingest.corpus]]\nname = \"d\"\nkind = \"image-text\"\npath = \"d/labels.csv\"\n\
                  media_root = \"d/media.tar\"\n";
    world.ingest(config).unwrap();
    let rows = by_key(world.rows("d"));
    assert_eq!(rows.iter().map(|r| r.media.clone()).collect::<Vec<_>>(), [one, two]);
    let rejects = world.rejects("d");
    assert_eq!(
        rejects[0],
        (RejectReason::MissingFile, "labels.csv 4: `media.tar` has no member `none.JPG`".to_owned())
    );
    assert!(rejects[1].1.contains("may be"), "{rejects:?}");
}

type Labels<'a> = (&'a str, Option<&'a str>, Option<i32>, Option<Vec<&'a str>>, Option<Vec<i32>>);

/// Key and label columns of every row, by key.
fn labels_of(rows: &[Seen]) -> Vec<Labels<'_>> {
    rows.iter()
        .map(|row| {
            let labels = row.labels.as_ref().map(|labels| labels.iter().map(String::as_str).collect());
            (row.key.as_str(), row.label.as_deref(), row.label_id, labels, row.label_ids.clone())
        })
        .collect()
}

#[test]
fn a_text_of_several_labels_is_cut_at_the_separator() {
    let world = World::new();
    (0..4).for_each(|i| world.put(&format!("m/{i}.wav"), wav(i)));
    let table = "path,label\n0.wav,Dog; Child_speech ;;Dog\n1.wav,Child_speech\n2.wav, ; \n3.wav,\"Bell;Dog\"\n";
    world.put("m/t.csv", table);
    let config = "max_reject_share = 0.5\n[[ingest.corpus]]\nname = \"m\"\nkind = \"audio-text\"\npath = \"m/t.csv\"\n\
                  label_separator = \";\"\ncaption_from_label = [\"the sound of {}\"]\n";
    world.ingest(config).unwrap();
    assert_eq!(world.manifest("m").classes, ["Bell", "Child_speech", "Dog"]);
    let rows = by_key(world.rows("m"));
    let want: [Labels<'_>; 3] = [
        ("0", Some("Dog"), Some(2), Some(vec!["Dog", "Child_speech"]), Some(vec![2, 1])),
        ("1", Some("Child_speech"), Some(1), None, None),
        ("3", Some("Bell"), Some(0), Some(vec!["Bell", "Dog"]), Some(vec![0, 2])),
    ];
    assert_eq!(labels_of(&rows), want);
    let captions: Vec<&[String]> = rows.iter().map(|row| row.captions.as_slice()).collect();
    let want = ["the sound of Dog and Child speech", "the sound of Child speech", "the sound of Bell and Dog"];
    assert_eq!(captions, want.map(|caption| [caption.to_owned()]));
    let bare = (RejectReason::EmptyCaption, "t.csv 4: `2.wav`: neither a caption nor a label".to_owned());
    assert_eq!(world.rejects("m"), [bare]);
    // Without a separator the text is one class.
    world.ingest(&config.replace("label_separator = \";\"\n", "")).unwrap();
    assert_eq!(by_key(world.rows("m"))[3].label.as_deref(), Some("Bell;Dog"));
}

#[test]
fn rows_of_one_record_may_list_its_labels_in_any_order() {
    let world = World::new();
    world.put("m/0.wav", wav(0));
    world.put("m/t.csv", "path,label,caption\n0.wav,Dog;Bell,one\n0.wav,Bell; Dog;Bell,two\n0.wav,Dog,three\n");
    let config = "max_reject_share = 0.5\n[[ingest.corpus]]\nname = \"m\"\nkind = \"audio-text\"\npath = \"m/t.csv\"\n\
                  label_separator = \";\"\n";
    world.ingest(config).unwrap();
    let rows = world.rows("m");
    assert_eq!(labels_of(&rows), [("0", Some("Dog"), Some(1), Some(vec!["Dog", "Bell"]), Some(vec![1, 0]))]);
    assert_eq!(rows[0].captions, ["one", "two"]);
    let other = "t.csv 4: `0.wav` stood in line 2 with another label".to_owned();
    assert_eq!(world.rejects("m"), [(RejectReason::DuplicateKey, other)]);
}

#[test]
fn a_list_of_labels_in_json_is_several_labels_of_the_class_list() {
    let world = World::new();
    (0..6).for_each(|i| world.put(&format!("j/{i}.wav"), wav(i)));
    world.put("classes.txt", "Bell\nDog; small\n");
    let lines = [
        r#"{"path":"0.wav","label":["Dog; small","Bell"]}"#,
        r#"{"path":"1.wav","label":["Bell","Cow"]}"#,
        r#"{"path":"2.wav","label":["Dog; small",1,"1"]}"#,
        r#"{"path":"3.wav","label":[["Bell"]]}"#,
        r#"{"path":"4.wav","label":[],"caption":"nobody knows"}"#,
        r#"{"path":"5.wav","label":"Bell"}"#,
    ];
    world.put("j/t.jsonl", lines.join("\n"));
    let config = "max_reject_share = 0.5\n[[ingest.corpus]]\nname = \"j\"\nkind = \"audio-text\"\npath = \"j/t.jsonl\"\n\
                  class_names = \"classes.txt\"\n";
    world.ingest(config).unwrap();
    assert_eq!(world.manifest("j").classes, ["Bell", "Dog; small"]);
    let rows = by_key(world.rows("j"));
    let want: [Labels<'_>; 4] = [
        ("0", Some("Dog; small"), Some(1), Some(vec!["Dog; small", "Bell"]), Some(vec![1, 0])),
        ("2", Some("Dog; small"), Some(1), None, None),
        ("4", None, None, None, None),
        ("5", Some("Bell"), Some(0), None, None),
    ];
    assert_eq!(labels_of(&rows), want);
    let rejects = world.rejects("j");
    let has = |reason, part: &str| rejects.iter().any(|(r, text)| *r == reason && text.contains(part));
    assert!(has(RejectReason::UnknownClass, "t.jsonl 2: `1.wav`: class `Cow`"), "{rejects:?}");
    assert!(
        has(RejectReason::MalformedRow, "t.jsonl 4: `label` is a list, wanted a string or a number"),
        "{rejects:?}"
    );
    assert_eq!(rejects.len(), 2, "{rejects:?}");
}

#[test]
fn clips_are_kept_with_their_codec() {
    let world = World::new();
    world.put("v/a.mp4", mp4(1));
    world.put("v/a.txt", "things move");
    world.ingest("[[ingest.corpus]]\nname = \"v\"\nkind = \"video-text\"\npath = \"v\"\n").unwrap();
    let rows = world.rows("v");
    assert_eq!((rows[0].codec.as_str(), rows[0].media.clone()), ("h264", mp4(1)));
    assert_eq!(world.manifest("v").shards[0].ranges["num_frames"], [6.0, 6.0]);
}

#[test]
fn a_hold_out_depends_on_keys_alone() {
    let world = World::new();
    let mut table = "path,caption\n".to_owned();
    for i in 0..60 {
        world.put(&format!("h/{i:02}.png"), png(i));
        table += &format!("{i:02}.png,picture {i}\n");
    }
    world.put("h/t.csv", &table);
    let config = "[[ingest.corpus]]\nname = \"h\"\nkind = \"image-text\"\npath = \"h/t.csv\"\nsplit = { hold_out = { test = 0.3 } }\n";
    world.ingest(config).unwrap();
    let test_keys = |rows: Vec<Seen>| -> Vec<String> {
        by_key(rows).into_iter().filter(|r| r.split == "test").map(|r| r.key).collect()
    };
    let first = test_keys(world.rows("h"));
    // Four standard deviations of a binomial with n = 60, p = 0.3 are 14.2.
    assert!(first.len() > 3 && first.len() < 33, "{first:?}");
    let rows: Vec<&str> = table.lines().collect();
    let reversed = [&rows[..1], &rows[1..40].iter().rev().copied().collect::<Vec<_>>()[..]].concat().join("\n");
    world.put("h/t.csv", reversed);
    world.ingest(config).unwrap();
    let kept: Vec<String> = first.into_iter().filter(|key| key.parse::<u32>().unwrap() < 39).collect();
    assert_eq!(test_keys(world.rows("h")), kept);
}
