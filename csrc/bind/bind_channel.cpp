#include "bind/bindings.h"

#include <memory>

#include "bind/passed_values.h"
#include "bind/passing_arguments.h"
#include "bind/plain_call.h"

namespace py = pybind11;
using forkfd::Progress;

namespace {

// A transfer that may be interrupted and continued, for channels.
class ChannelSending {
  public:
    ChannelSending(const py::object& data, const py::object& fds)
        : buffers_(data), borrowed_(fds),
          sending_(buffers_.pieces(), borrowed_.numbers.data(), borrowed_.numbers.size(), nullptr,
                   true) {
        if (borrowed_.numbers.empty() && buffers_.size() == 0)
            throw py::value_error("send: an empty message would mean the end of the channel");
    }
    bool advance(int sock) { return sending_.advance(sock, MSG_DONTWAIT) == Progress::done; }
    bool begun() const { return sending_.begun(); }
    void keep() { sending_.keep(); }

  private:
    Buffers buffers_;
    Borrowed borrowed_;
    forkfd::Sending sending_;
};

class ChannelReceiving {
  public:
    ChannelReceiving(std::size_t max_bytes, unsigned max_fds)
        : buffer_(new char[max_bytes]), receiving_(buffer_.get(), max_bytes, max_fds) {}
    py::object advance(int sock) {
        try {
            Progress progress;
            {
                const WithoutGil released;
                progress = receiving_.advance(sock, MSG_DONTWAIT);
            }
            if (progress != Progress::done) return py::none();
        } catch (const forkfd::Incomplete& error) {
            set_incomplete(error, receiving_, buffer_.get());
            throw py::error_already_set();
        }
        return received(receiving_, buffer_.get());
    }

  private:
    std::unique_ptr<char[]> buffer_;
    forkfd::Receiving receiving_;
};

}  // namespace

void bind_channel(py::module_& m) {
    py::class_<ChannelSending>(m, "ChannelSending")
        .def(py::init<py::object, py::object>(), py::arg("data"), py::arg("fds"), py::pos_only())
        .def("advance", &ChannelSending::advance, py::arg("sock"), py::pos_only(),
             py::call_guard<py::gil_scoped_release>())
        .def("keep", &ChannelSending::keep)
        .def_property_readonly("begun", &ChannelSending::begun);
    py::class_<ChannelReceiving>(m, "ChannelReceiving")
        .def(py::init<std::size_t, unsigned>(), py::arg("max_bytes"), py::arg("max_fds"),
             py::pos_only())
        .def("advance", &ChannelReceiving::advance, py::arg("sock"), py::pos_only());
}
