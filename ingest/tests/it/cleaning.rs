//! Rules of cleaning across a whole corpus, earlier runs and other corpora.

use imp_schemas::reject::RejectReason;

use crate::common::{World, encode};

/// Pictures of which `b` has the bytes of `a`, and `c` is `a` in another format; captions of which two are nearly alike.
fn corpus(world: &World) {
    let text = |name: &str, caption: &str| world.put(&format!("p/{name}.txt"), caption);
    world.put("p/a.png", encode(96, 1, image::ImageFormat::Png));
    world.put("p/b.png", encode(96, 1, image::ImageFormat::Png));
    world.put("p/c.jpg", encode(96, 1, image::ImageFormat::Jpeg));
    world.put("p/d.png", encode(96, 40, image::ImageFormat::Png));
    text("a", "a plain pattern of squares in many colours on a grey ground");
    text("b", "something else");
    text("c", "a third thing, not seen before");
    text("d", "A plain pattern of squares, in many colours, on a grey ground");
}

fn config(clean: &str) -> String {
    format!(
        "max_reject_share = 0.9\nunit_records = 1\n[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"p\"\n\
         clean = {{ {clean} }}\n"
    )
}

fn check(clean: &str, n_records: u64, n_rejected: &[(RejectReason, u64)], broken: &[(&str, u64)]) {
    let world = World::new();
    corpus(&world);
    world.ingest(&config(clean)).unwrap();
    let manifest = world.manifest("c");
    let (n_inputs, rejected) = (manifest.n_inputs, manifest.n_rejected.into_iter().collect::<Vec<_>>());
    assert_eq!((n_inputs, manifest.n_records, &rejected[..]), (4, n_records, n_rejected), "{clean}");
    let found: Vec<(&str, u64)> = manifest.broken_rules.iter().map(|(rule, n)| (rule.as_str(), *n)).collect();
    assert_eq!(found, broken, "{clean}");
}

#[test]
fn duplicates_are_found_across_units_and_counted_by_rule() {
    use RejectReason::{CaptionRule, DuplicateMedia, NearDuplicate};
    check("duplicates = \"keep\"", 4, &[], &[]);
    check("duplicates = \"drop\"", 3, &[(DuplicateMedia, 1)], &[]);
    check("near = { picture_bits = 6 }", 2, &[(NearDuplicate, 2)], &[]);
    check("near = { caption_jaccard = 0.9 }", 3, &[(NearDuplicate, 1)], &[]);
    check("duplicates = \"drop\", near = { picture_bits = 6 }", 2, &[(DuplicateMedia, 1), (NearDuplicate, 1)], &[]);
    check("caption = { min_words = 3 }", 3, &[(CaptionRule, 1)], &[]);
    check(
        "dry = true, duplicates = \"drop\", near = { picture_bits = 6 }, caption = { min_words = 3 }",
        4,
        &[],
        &[("caption.min_words", 1), ("duplicates", 1), ("near.picture_bits", 1)],
    );
}

#[test]
fn what_an_evaluation_set_has_is_kept_out_of_a_training_corpus() {
    let world = World::new();
    corpus(&world);
    world.put("test/x.jpg", encode(96, 40, image::ImageFormat::Jpeg));
    world.put("test/x.txt", "held out");
    let tokenizer = "tokenizer = { train = { vocab_size = 300 } }\n";
    let test = "[[ingest.corpus]]\nname = \"test\"\nkind = \"image-text\"\npath = \"test\"\nclean = { near = { picture_bits = 6 } }\n";
    let train = "[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"p\"\nmax_reject_share = 0.9\n\
                 clean = { near = { picture_bits = 6, against = [\"test\"] } }\n";
    world.ingest(&format!("{tokenizer}{test}")).unwrap();
    world.ingest(&format!("{tokenizer}{train}")).unwrap();
    let manifest = world.manifest("c");
    let hidden = world.store("store").tombstones(&manifest).unwrap();
    let of_test: Vec<&str> =
        hidden.iter().filter(|t| t.detail.contains("corpus `test`")).map(|t| t.key.as_str()).collect();
    assert_eq!(of_test, ["d"]);
}
