//! Corpora that lie in object storage give the records that they give on this machine.

use std::path::Path;

use imp_ingest::Progress;
use imp_schemas::store::Store;
use testkit::s3::S3Server;

use crate::common::{Seen, World, config_of, jpeg, seen, tar_of};
use crate::tables::{blobs, parquet, texts};

fn ingest(world: &World, server: &S3Server, root: &str, path: &str) -> Vec<Seen> {
    let text = format!(
        "[[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"{path}\"\nclass_names = \"classes.txt\"\n"
    );
    let config =
        config_of(&text, Path::new(root), &world.path("run.toml")).unwrap().with_store_options(&server.options());
    let store = world.store("store");
    imp_ingest::run(&config, &store, &mut Progress::silent()).unwrap();
    seen(&store, "c")
}

#[test]
fn tars_and_parquet_in_a_bucket_give_the_records_of_the_same_files_in_a_folder() {
    let server = S3Server::start().unwrap();
    let bucket = Store::open_with(&server.url("corpora"), &server.options()).unwrap();
    let (one, two) = (jpeg(1), jpeg(2));
    let tar = tar_of(&[("1.jpg", &one), ("1.cls", b"0"), ("2.jpg", &two), ("2.cls", b"dog")]);
    let media = [("image", blobs(&[Some(&one), Some(&two)])), ("label", texts(&[Some("dog"), Some("cat")]))];
    let files = [
        ("w/a-1.tar", tar.clone()),
        ("w/a-1.tar.zst", zstd::encode_all(&tar[..], 3).unwrap()),
        ("p/a.parquet", parquet(&media, None)),
        ("classes.txt", b"cat\ndog\n".to_vec()),
    ];
    let world = World::new();
    for (name, bytes) in &files {
        world.put(name, bytes);
        bucket.put(name, bytes.clone().into()).unwrap();
    }
    for path in ["w/a-*.tar", "w/a-1.tar.zst", "p/a.parquet", "p/*.parquet"] {
        let here = ingest(&world, &server, world.root().to_str().unwrap(), path);
        let there = ingest(&world, &server, &server.url("corpora"), path);
        assert_eq!(here.len(), 2, "{path}");
        assert_eq!(here, there, "{path}");
    }
}
