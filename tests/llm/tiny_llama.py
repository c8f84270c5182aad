"""A Llama of two small layers over 22 symbols, randomly initialized, and its tokenizer; nothing is downloaded."""

SYMBOLS = "_^$0123456789+=>abcdef"  # padding, begin, end, ...


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}, unk_token="_"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    special = {"pad_token": "_", "bos_token": "^", "eos_token": "$", "unk_token": "_"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def model(layers=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SYMBOLS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
