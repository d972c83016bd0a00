"""The SHA-256 of every shard of the slices that are built on the user's machine: all machines build the same bytes."""

PINNED: dict[str, dict[str, str]] = {
    "synthetic": {
        "train_000000.bin": "1c046eda0136fa32aa52aaeb1f119741175a61a9210cb60310c8f6bb0fc26178",
        "train_000001.bin": "3bc80e11ed44405aec1d73cae789238dbc9ca8e0db4c0a2c68b392b6e8de4d2e",
        "train_000002.bin": "4594d382c7e95097b5504437b91fe0948b90c816c1dd8e82a9ab4f2dfe664495",
        "train_000003.bin": "b76643eeaec5ff77de9d4176c476587cca18129abb54b843b765cc0c915e3ef5",
        "val_000000.bin": "7ac3db100c947ea7b270e731075e79d80f7b192b706bd259d15e1923ec7d7373",
        "confirm_000000.bin": "5918f5bb6f4676f147797f3afe6d070b1185bf055f99af740c0051d886ae2dfa",
    },
    "news": {
        "train_000000.bin": "6bc27177458d22e7e612240c3e182232efbc83cc6f2a9cc1c28c71855ba66559",
        "train_000001.bin": "d1238744918fe97f8907ea600f43962f6fa6e064abcf63ab0f46fcdc34ae6255",
        "train_000002.bin": "0a7d36a7c9a8a9b1253ffaedb9d8e2d208a992ab4bf5bc58db54cfa1eed61490",
        "train_000003.bin": "a3b132ab43c99168566c3180796692b5fac1cfaad331cfabf8a9624b83b890ba",
        "val_000000.bin": "bf904ff04f167166f8b148b066e75f1700f1b15410afc485a055db13bd65a5cb",
        "confirm_000000.bin": "df2033b0db48d69296b026a2769eec193d249e329e070b88892d179e03a375e4",
    },
}
