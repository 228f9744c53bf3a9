//! What Python's type checkers are told is what there is.

#[test]
fn the_stub_names_every_setting_of_the_loader_and_no_other() {
    let stub = include_str!("../imp_loader/_native.pyi");
    let (_, settings) = stub.split_once("class Settings(").unwrap();
    let (settings, _) = settings.split_once("\n@final").unwrap();
    let named: Vec<&str> =
        settings.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(": int")).collect();
    let all = serde_json::to_value(imp_loader::LoaderSettings::default()).unwrap();
    let wanted: Vec<&str> = all.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(named, wanted);
}
