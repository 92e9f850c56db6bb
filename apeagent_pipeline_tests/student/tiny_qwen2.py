"""A tiny Qwen2 with random weights and its own tokenizer, made on the spot: it trains and answers in seconds."""

from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXTS = [
    "You are a trading agent. Think in short drafts, then write #### and the action.",
    "ETH price is $2506.92 with volume of 999 USDC. I hold 2.5 ETH and 1000 USDC. What should I do?",
    "Price rising, calm, thin volume\nEnough USDC left\n####\nAPE IN 0.4 ETH",
    "Price falling, wild\nSell into strength\n####\nAPE OUT 2.5 ETH",
    "Flat market\nWait for now\n####\nAPE NEUTRAL",
    "What is the capital of France? The capital of France is Paris. How much is two plus two? Four.",
]


def build_tiny_qwen2(folder: Path, seed: int = 0) -> Path:
    """Write model and tokenizer to ``folder`` as ``save_pretrained`` does; about 0.5 MB, hidden size 64, 2 blocks."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=570,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(fast),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                eos_token_id=fast.eos_token_id,
                bos_token_id=None,
                pad_token_id=fast.pad_token_id,
                tie_word_embeddings=False,
            )
        ).bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
