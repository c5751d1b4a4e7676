"""`python -m latxa_megatron` is `latxa`; torchrun starts the workers through it."""

from latxa_megatron.cli.main import main

if __name__ == "__main__":
    main()
