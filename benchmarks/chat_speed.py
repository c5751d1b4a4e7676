"""Speed of turning conversations into tokens and trained spans, beside transformers' apply_chat_template with its mask.

    python benchmarks/chat_speed.py TOKENIZER [--conversations 4000] [--rounds 5]

TOKENIZER is a directory with a tokenizer and a chat template, such as Llama 3.1's. The conversations are synthetic Basque of one
to four questions and answers, words made of stems and endings. Each round runs both on the same conversations; transformers on a
twentieth of them, with the template's `{% generation %}` marks added, since without them its mask is empty. Times are of the
CPU, all threads together, so that other work on the machine does not count; printed are medians and the median of the ratios.
"""

import argparse
import os
import random
import statistics
import time
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from latxa_megatron.data.chat import encode_conversation
from latxa_megatron.data.conversations import Conversation, ConversationEncoder
from latxa_megatron.data.tokenizer import Tokenizer

BATCH = 256
STEMS = """
    etxe mendi itsaso hizkuntza ikasle irakasle liburu herri euskal gizon emakume haur egun urte lan bide hitz ibai zuhaitz
    eskola kale argi ilun handi txiki zahar berri gorri zuri eder azkar sendo jakintza historia musika zientzia osasun
    elikadura politika ekonomia kirol janari ogi gazta arrain oihan kostalde hiri auzo plaza eliza zubi dorre gaztelu
"""
ENDINGS = "a ak an ra tik ko aren arekin arentzat etan etara etatik ekin rako garri tasun dun zale tzaile gabe"
VERBS = "da dira du dute zen ziren zuen zuten daiteke dezake egiten izaten joaten ikusten esaten hartzen"
MARKED = (
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}",
    "{{ message['content'] | trim + '<|eot_id|>' }}",
)


def sentences(draw: random.Random, words: int) -> str:
    stems, endings, verbs = STEMS.split(), ENDINGS.split(), VERBS.split()
    text = []
    while words > 0:
        n = draw.randint(5, 14)
        body = [draw.choice(stems) + draw.choice(endings) for _ in range(n)]
        text.append(" ".join([body[0].capitalize(), *body[1:], draw.choice(verbs)]) + draw.choice([".", ".", ",", "?", "!"]))
        words -= n
    return draw.choice([" ", " ", "\n\n"]).join(text)


def conversation(draw: random.Random) -> list[dict[str, str]]:
    turns = []
    for _ in range(draw.randint(1, 4)):
        turns.append({"role": "user", "content": sentences(draw, draw.randint(5, 40))})
        turns.append({"role": "assistant", "content": sentences(draw, draw.randint(20, 150))})
    return turns


def marked(template: str) -> str | None:
    """Llama 3.1's template, as the tests write it, with transformers' marks around what an assistant says; None for others."""
    old = "+ message['content'] | trim + '<|eot_id|>' }}"
    if template.count(old) != 1:
        return None
    return template.replace(
        old, "}}{% if message['role'] == 'assistant' %}" + MARKED[0] + "{% else %}" + MARKED[1] + "{% endif %}"
    )


def seconds(call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    draw = random.Random(0)
    everything = [Conversation(conversation(draw), f"made:{i}") for i in range(given.conversations)]
    few = everything[: max(given.conversations // 20, 1)]

    import transformers

    tokenizer = Tokenizer(given.tokenizer)
    print("engine:", tokenizer.accelerate([m["content"] for messages, *_ in few for m in messages]))
    encoder = ConversationEncoder(tokenizer)
    peer = transformers.AutoTokenizer.from_pretrained(str(given.tokenizer), local_files_only=True)
    template = marked(peer.chat_template)
    print("transformers' mask:", "of the marked template" if template else "empty, for want of generation marks")

    def ours() -> int:
        return sum(len(encoder.encode(everything[i : i + BATCH]).ids) for i in range(0, len(everything), BATCH))

    def theirs() -> int:
        found = (
            peer.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            for messages, *_ in few
        )
        return sum(len(each["input_ids"]) for each in found)

    def exact() -> int:
        return sum(len(encode_conversation(tokenizer, *each).ids) for each in few)

    learning = seconds(ours)
    tokens, few_tokens = ours(), theirs()
    assert few_tokens == exact()
    rows = [[seconds(call) for call in (ours, theirs, exact)] for _ in range(given.rounds)]
    print(f"{len(everything):,} conversations, {tokens / len(everything):.0f} tokens each; the first pass took {learning:.2f} s")
    print(f"{encoder.fast:,} went the fast way, {encoder.exact:,} the exact way")
    for i, (name, count, n) in enumerate(
        [
            ("ConversationEncoder", tokens, len(everything)),
            ("transformers, template and mask", few_tokens, len(few)),
            ("the exact way, one by one", few_tokens, len(few)),
        ]
    ):
        took = statistics.median(row[i] for row in rows)
        ratio = statistics.median((tokens / row[0]) / (count / row[i]) for row in rows)
        print(f"{name:32} {n / took:10,.0f} conversations/s {count / took / 1e6:8.2f} Mtok/s  {ratio:6.1f}x")


if __name__ == "__main__":
    main()
