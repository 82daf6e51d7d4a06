"""What is published says nothing of keys and places of this machine."""

import pytest

from hf_vaq.privacy import public


@pytest.mark.parametrize(
    ("private", "expected"),
    [
        ("s3://key:secret@bucket/photos", "s3://bucket/photos"),
        ("s3://key:se/cr+et@bucket/photos", "s3://bucket/photos"),
        ("https://user:p@ss@host/photos.zip", "https://host/photos.zip"),
        ("https://user@host/photos.zip", "https://host/photos.zip"),
        ("https://host/photos.zip?X-Amz-Signature=1f&x=2", "https://host/photos.zip"),
        ("https://host/photos.zip?sv=2024&sig=1f", "https://host/photos.zip"),
        ("https://host/photos.zip?api_key=1f", "https://host/photos.zip"),
        ("https://host/photos#access_token=1f", "https://host/photos"),
        ("decay=1,api_key=1f", "decay=1,api_key=(removed)"),
        ("file:///data/me/my%20photos", "my photos"),
        ("FILE:/data/me/photos/", "photos"),
        ("/data/me/photos/*.parquet", "*.parquet"),
        ("~/photos", "photos"),
        ("../me/photos", "photos"),
        (r"C:\Users\me\photos", "photos"),
        ("labels of s3://k:s@bucket, cropped", "labels of s3://bucket, cropped"),
        ("made with hf_" + "a" * 34, "made with (removed)"),
        ("AKIA" + "A" * 16, "(removed)"),
    ],
)
def test_places_and_keys_leave_text(private, expected):
    assert public(private) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ILSVRC/imagenet-1k",
        "https://example.org/photos.zip?version=2",
        "hf://datasets/zoo/photos@main/x.parquet",
        "https://example.org:8080/photos",
        "cosine",
        "W2A2, packed",
        "x/" + "y" * 5000,
        "",
        0.5,
        None,
    ],
)
def test_what_anybody_may_know_stays(text):
    assert public(text) == text


def test_fields_are_dropped_by_their_name_at_any_depth(tmp_path):
    private = {
        "token": "a",
        "hub_token": "b",
        "api_key": "c",
        "apiKey": "d",
        "aws_secret_access_key": "e",
        "Authorization": "f",
        "password": "g",
        "storage_options": {"key": "h", "secret": "i"},
        "output_dir": "j",
        "dataset": str(tmp_path),
        "folder": tmp_path,
        "include_num_input_tokens_seen": True,
        "rest": ["x/y", {"z": "/q/r"}],
    }
    assert public(private) == {
        "storage_options": {},
        "dataset": tmp_path.name,
        "folder": tmp_path.name,
        "include_num_input_tokens_seen": True,
        "rest": ["x/y", {"z": "r"}],
    }
