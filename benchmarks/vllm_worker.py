"""What vLLM makes of a Hugging Face directory, for vllm_loading.py: run by a Python that has vLLM and nothing of ours.

    python benchmarks/vllm_worker.py REQUEST.json ANSWER.json

REQUEST: directory; prompts, lists of token ids, or chats, lists of messages that vLLM makes token ids of itself, by the
directory's own tokenizer and chat template; tokens, how many to generate. ANSWER: version of vLLM, and for each prompt its token
ids, the log-probabilities of all but its first, and the ids that were generated, greedily in fp32.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import vllm

    request, answer = (Path(name) for name in sys.argv[1:])
    wanted = json.loads(request.read_text())
    prompts, chats = wanted.get("prompts"), wanted.get("chats")
    model = vllm.LLM(
        wanted["directory"],
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=prompts is not None,
    )
    greedy = vllm.SamplingParams(
        temperature=0, max_tokens=wanted["tokens"], ignore_eos=True, prompt_logprobs=0, detokenize=prompts is None
    )
    if prompts is None:
        found = model.chat(chats, greedy, use_tqdm=False)
    else:
        found = model.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
    rows = [
        {
            "prompt": each.prompt_token_ids,
            "logprobs": [each.prompt_logprobs[i][each.prompt_token_ids[i]].logprob for i in range(1, len(each.prompt_token_ids))],
            "generated": list(each.outputs[0].token_ids),
        }
        for each in found
    ]
    answer.write_text(json.dumps({"version": vllm.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
