// Answers requests with a SavedModel in TensorFlow's C++ runtime, which is what TensorFlow Serving
// embeds: without Python, and without code of the library that made the model.
//
//   serving_program MODEL REQUESTS ANSWERS [rounds=N] [clients=N] [disable_xla]
//
// REQUESTS: a TFRecord file of tensorflow.NamedTensorProto. A message without tensor content begins a
// request and names its signature; its inputs follow. ANSWERS: the same, with the outputs. With rounds,
// all requests are then repeated that many times, shared among the clients (threads), and timed. One
// JSON object is printed to the standard output. disable_xla does what the stock server does by default.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/lib/io/record_reader.h"
#include "tensorflow/core/lib/io/record_writer.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/protobuf/named_tensor.pb.h"
#include "tensorflow/core/public/session.h"

namespace tensorflow {
void DisableXlaCompilation();  // tensorflow/compiler/jit/flags.h
}

namespace {

// From tag_constants.h, which the tensorflow package does not include.
constexpr char kServeTag[] = "serve";

using Clock = std::chrono::steady_clock;

struct Request {
  std::string signature;
  std::vector<std::pair<std::string, tensorflow::Tensor>> feeds;
  std::vector<std::string> names;    // of the outputs
  std::vector<std::string> fetches;  // their tensors
};

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

[[noreturn]] void Fail(const std::string& message) {
  std::cerr << message << std::endl;
  std::exit(1);
}

void Check(const tensorflow::Status& status, const std::string& attempt) {
  if (!status.ok()) Fail("could not " + attempt + ": " + status.ToString());
}

std::vector<Request> ReadRequests(const std::string& path,
                                  const tensorflow::SavedModelBundle& bundle) {
  std::unique_ptr<tensorflow::RandomAccessFile> file;
  Check(tensorflow::Env::Default()->NewRandomAccessFile(path, &file), "open " + path);
  tensorflow::io::RecordReader reader(file.get());
  std::vector<Request> requests;
  tensorflow::uint64 offset = 0;
  tensorflow::tstring record;
  while (true) {
    const tensorflow::Status status = reader.ReadRecord(&offset, &record);
    if (tensorflow::errors::IsOutOfRange(status)) return requests;
    Check(status, "read " + path);
    tensorflow::NamedTensorProto message;
    if (!message.ParseFromString(std::string(record))) Fail(path + " holds no NamedTensorProto");
    if (!message.has_tensor()) {
      const auto& signatures = bundle.GetSignatures();
      const auto found = signatures.find(message.name());
      if (found == signatures.end()) Fail("no signature " + message.name());
      requests.emplace_back();
      requests.back().signature = message.name();
      for (const auto& output : found->second.outputs()) {
        requests.back().names.push_back(output.first);
        requests.back().fetches.push_back(output.second.name());
      }
      continue;
    }
    if (requests.empty()) Fail(path + " does not begin with a signature");
    const auto& inputs = bundle.GetSignatures().at(requests.back().signature).inputs();
    const auto input = inputs.find(message.name());
    if (input == inputs.end()) Fail("no input " + message.name());
    tensorflow::Tensor tensor;
    if (!tensor.FromProto(message.tensor())) Fail("no tensor in " + message.name());
    requests.back().feeds.emplace_back(input->second.name(), tensor);
  }
}

std::vector<tensorflow::Tensor> Run(const tensorflow::SavedModelBundle& bundle,
                                    const Request& request) {
  std::vector<tensorflow::Tensor> outputs;
  Check(bundle.GetSession()->Run(request.feeds, request.fetches, {}, &outputs),
        "run " + request.signature);
  return outputs;
}

void PrintNumbers(const char* name, const std::vector<double>& numbers) {
  std::cout << '"' << name << "\": [";
  for (size_t i = 0; i < numbers.size(); ++i) std::cout << (i ? ", " : "") << numbers[i];
  std::cout << "]";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) Fail("usage: serving_program MODEL REQUESTS ANSWERS [rounds=N] [clients=N] [disable_xla]");
  int rounds = 0, clients = 1;
  for (int i = 4; i < argc; ++i) {
    const std::string option = argv[i];
    if (option.rfind("rounds=", 0) == 0) {
      rounds = std::atoi(option.c_str() + 7);
    } else if (option.rfind("clients=", 0) == 0) {
      clients = std::max(1, std::atoi(option.c_str() + 8));
    } else if (option == "disable_xla") {
      tensorflow::DisableXlaCompilation();
    } else {
      Fail("unknown option " + option);
    }
  }

  auto start = Clock::now();
  tensorflow::SavedModelBundle bundle;
  Check(tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(), argv[1],
                                   {kServeTag}, &bundle),
        std::string("load ") + argv[1]);
  const double load_seconds = SecondsSince(start);
  const std::vector<Request> requests = ReadRequests(argv[2], bundle);

  std::unique_ptr<tensorflow::WritableFile> file;
  Check(tensorflow::Env::Default()->NewWritableFile(argv[3], &file),
        std::string("write ") + argv[3]);
  tensorflow::io::RecordWriter writer(file.get());
  std::vector<double> first;
  for (const Request& request : requests) {
    start = Clock::now();
    const std::vector<tensorflow::Tensor> outputs = Run(bundle, request);
    first.push_back(SecondsSince(start));
    tensorflow::NamedTensorProto answer;
    answer.set_name(request.signature);
    Check(writer.WriteRecord(answer.SerializeAsString()), "write an answer");
    for (size_t i = 0; i < outputs.size(); ++i) {
      answer.set_name(request.names[i]);
      outputs[i].AsProtoTensorContent(answer.mutable_tensor());
      Check(writer.WriteRecord(answer.SerializeAsString()), "write an answer");
    }
  }
  Check(writer.Close(), "write the answers");
  Check(file->Close(), "write the answers");

  const size_t runs = static_cast<size_t>(std::max(0, rounds)) * requests.size();
  std::vector<double> seconds(runs);
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  start = Clock::now();
  for (int client = 0; client < clients && runs; ++client) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < runs; i = next++) {
        const auto begun = Clock::now();
        Run(bundle, requests[i % requests.size()]);
        seconds[i] = SecondsSince(begun);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double elapsed = SecondsSince(start);

  std::cout << "{\"load_seconds\": " << load_seconds << ", \"elapsed_seconds\": " << elapsed << ", ";
  PrintNumbers("first_seconds", first);
  std::cout << ", ";
  PrintNumbers("seconds", seconds);  // request 0, 1, …, 0, 1, …
  std::cout << "}" << std::endl;
  return 0;
}
