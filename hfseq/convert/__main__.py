"""Command line of the converters: `python -m hfseq.convert FORMAT CHECKPOINT --output_dir DIR`."""

from hfseq.convert.command import main

if __name__ == "__main__":
    main()
