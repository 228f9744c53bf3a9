//! Captions → ids: a tokenizer from a file, or a byte-level BPE trained over the captions of the run.
//!
//! In: captions. Out: ids, none of them 0, which is padding; and the tokenizer's file. Never: hash order in the file, a
//! crop, padding.

use std::path::Path;

use imp_schemas::manifest::TokenizerEntry;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{Digest, tokenizer_key};
use imp_schemas::store::Store;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::{Lowercase, NFC, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::config::{TokenizerSpec, TrainSpec};
use crate::error::IngestError;
use crate::text::Refusal;

/// The token of id 0.
const PAD: &str = "<pad>";

/// Names by which other people's tokenizers call padding.
const PAD_NAMES: [&str; 6] = [PAD, "[PAD]", "<|pad|>", "[pad]", "<PAD>", "<blank>"];

/// A tokenizer ready for captions, and the bytes that are stored.
#[derive(Debug)]
pub(crate) struct CaptionTokenizer {
    tokenizer: Tokenizer,
    pub(crate) bytes: Vec<u8>,
    pub(crate) entry: TokenizerEntry,
}

impl CaptionTokenizer {
    /// The tokenizer of the file that `spec` names.
    ///
    /// # Errors
    /// The file cannot be read, is no tokenizer, or its id 0 is no padding.
    pub(crate) fn read(spec: &TokenizerSpec, root: &Path) -> Result<Self, IngestError> {
        let TokenizerSpec::File(file) = spec else {
            return Self::train(spec, &mut std::iter::empty());
        };
        let path = root.join(file);
        let bytes = std::fs::read(&path).map_err(|source| IngestError::Read { path, source })?;
        Self::of(&file.display().to_string(), bytes)
    }

    /// The tokenizer of a corpus that is published already.
    ///
    /// # Errors
    /// The store failed, or does not have it.
    pub(crate) fn of_store(store: &Store, digest: &Digest) -> Result<Self, IngestError> {
        let key = tokenizer_key(digest);
        let bytes = store.get(&key)?;
        Self::of(&key, bytes.to_vec())
    }

    /// A tokenizer trained over `captions`, as `spec` asks.
    ///
    /// # Errors
    /// The captions do not make one.
    pub(crate) fn train(
        spec: &TokenizerSpec,
        captions: &mut (dyn Iterator<Item = String> + Send),
    ) -> Result<Self, IngestError> {
        let name = "trained over the captions";
        let vocab_size = match spec {
            TokenizerSpec::Train(train) => train.vocab_size,
            TokenizerSpec::File(_) => TrainSpec::default().vocab_size,
        };
        let failed = |e: tokenizers::Error| IngestError::Tokenizer { name: name.to_owned(), detail: e.to_string() };
        let bytes = train_bpe(vocab_size, captions).map_err(failed)?;
        Self::of(name, bytes)
    }

    fn of(name: &str, bytes: Vec<u8>) -> Result<Self, IngestError> {
        let broken = |detail: String| IngestError::Tokenizer { name: name.to_owned(), detail };
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|e| broken(format!("not a tokenizer of Hugging Face `tokenizers` (JSON): {e}")))?;
        let first = tokenizer.id_to_token(0);
        if !first.as_deref().is_some_and(|token| PAD_NAMES.contains(&token)) {
            let found = first.map_or("no token".to_owned(), |token| format!("`{token}`"));
            return Err(broken(format!(
                "id 0 is {found}, wanted a padding token such as `{PAD}`; give the tokenizer one with id 0, or leave \
                 `ingest.tokenizer` to train one"
            )));
        }
        // A caption that spells a special token is text like any other: only so is id 0 never produced.
        tokenizer.set_encode_special_tokens(true);
        tokenizer.with_truncation(None).map_err(|e| broken(e.to_string()))?;
        tokenizer.with_padding(None);
        let entry = TokenizerEntry { digest: Digest::of(&bytes), vocab_size: tokenizer.get_vocab_size(true) };
        Ok(Self { tokenizer, bytes, entry })
    }

    /// Ids of `caption`, at least one, each within `1..vocab_size`.
    pub(crate) fn encode(&self, caption: &str) -> Result<Vec<i32>, Refusal> {
        let failed = |detail: String| (RejectReason::InvalidText, detail);
        let encoding = self.tokenizer.encode_fast(caption, true).map_err(|e| failed(format!("not tokenised: {e}")))?;
        let ids: Vec<i32> = encoding.get_ids().iter().map(|&id| i32::try_from(id).unwrap_or(0)).collect();
        if ids.is_empty() {
            return Err((RejectReason::EmptyCaption, format!("the caption {caption:?} has no token")));
        }
        if ids.iter().any(|&id| id <= 0 || id as usize >= self.entry.vocab_size) {
            return Err(failed(format!(
                "the caption {caption:?} makes id 0, which is padding, or an id outside the vocabulary"
            )));
        }
        Ok(ids)
    }
}

/// Lower case, NFC, words with their space before, bytes, merges of pairs seen at least twice.
fn train_bpe(
    vocab_size: usize,
    captions: &mut (dyn Iterator<Item = String> + Send),
) -> Result<Vec<u8>, tokenizers::Error> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_normalizer(Some(Sequence::new(vec![NFC.into(), Lowercase.into()])))?;
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(true, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    // All 256 bytes are in the alphabet, so that no caption is ever unknown.
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(PAD, true)])
        .build();
    let mut trainer = tokenizers::models::TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, captions)?;
    Ok(tokenizer.to_string(false)?.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(captions: &[String], vocab_size: usize) -> CaptionTokenizer {
        let spec = TokenizerSpec::Train(TrainSpec { vocab_size });
        CaptionTokenizer::train(&spec, &mut captions.iter().cloned()).unwrap()
    }

    fn sentences() -> Vec<String> {
        let words = ["a", "small", "red", "circle", "blue", "square", "moves", "left", "naïve", "日本"];
        (0..400)
            .map(|i| (0..6).map(|j| words[(i * 7 + j * j * 3 + i / 11) % words.len()]).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn the_same_captions_in_any_order_train_the_same_file() {
        let mut captions = sentences();
        let first = train(&captions, 300).bytes;
        captions.reverse();
        assert_eq!(train(&captions, 300).bytes, first);
    }

    #[test]
    fn padding_is_id_zero_and_no_caption_makes_it() {
        let tokenizer = train(&sentences(), 300);
        assert_eq!(tokenizer.tokenizer.id_to_token(0).as_deref(), Some(PAD));
        for caption in ["a small red circle", "<pad>", "a <pad> b", "Ünïcødé 👩‍👩‍👧 \u{0}", "日本語", " "]
        {
            let ids = tokenizer.encode(caption).unwrap();
            assert!(ids.iter().all(|&id| id > 0 && (id as usize) < tokenizer.entry.vocab_size), "{caption}: {ids:?}");
        }
        assert_eq!(tokenizer.encode("A RED circle").unwrap(), tokenizer.encode("a red circle").unwrap());
        assert!(tokenizer.entry.vocab_size <= 300);
    }

    #[test]
    fn a_file_whose_first_id_is_not_padding_is_refused_with_the_remedy() {
        let trained = train(&sentences(), 300);
        let bytes = String::from_utf8(trained.bytes).unwrap().replace("<pad>", "<s>").into_bytes();
        let message = CaptionTokenizer::of("my.json", bytes).unwrap_err().to_string();
        assert!(message.contains("`<s>`") && message.contains("my.json") && message.contains("padding"), "{message}");
        let message = CaptionTokenizer::of("my.json", b"{}".to_vec()).unwrap_err().to_string();
        assert!(message.contains("not a tokenizer"), "{message}");
    }
}
