"""`python -m hfseq.demo`: see `hfseq.demo.page`."""

from hfseq.demo.page import main

if __name__ == "__main__":
    main()
